//! What the demo tells: plain sentences with figures, or one JSON object at the end.

use std::cell::Cell;
use std::path::Path;

use penstock_engine::repo::Repository;
use penstock_engine::stats::Stats;
use serde::Serialize;

use super::super::exit::Failure;
use super::super::output::{self, Table};
use super::super::session::Session;
use super::super::{backup, init, restore, units};
use super::changes::Changes;
use super::compare::Compared;
use super::disk::Disk;
use super::files::Staged;

/// All figures of a demo.
pub struct Results {
    pub image_bytes: u64,
    pub files: u64,
    pub files_bytes: u64,
    pub source_kind: &'static str,
    pub changes: Changes,
    pub first: backup::Done,
    pub second: backup::Done,
    pub full: restore::Done,
    pub incremental: restore::Done,
    pub identical: bool,
    pub first_difference: Option<u64>,
    pub stats: Stats,
    pub duration_ms: u64,
    /// The directory, with `--keep`.
    pub kept: Option<String>,
}

/// The result of `demo --json`.
#[derive(Serialize)]
struct Report<'a> {
    identical: bool,
    first_difference: Option<u64>,
    image_bytes: u64,
    files: u64,
    files_bytes: u64,
    source_kind: &'static str,
    changes: Changes,
    backups: [backup::Report<'a>; 2],
    restores: [restore::Report<'a>; 2],
    logical_bytes: u64,
    data_bytes: u64,
    unique_bytes: u64,
    stored_bytes: u64,
    duration_ms: u64,
    kept: Option<&'a str>,
}

/// The teller.
pub struct Story {
    silent: bool,
    json: bool,
    keep: bool,
    steps: Cell<u32>,
}

impl Story {
    pub fn new(session: &Session, keep: bool) -> Self {
        let json = session.globals.json;
        Self { silent: json || session.globals.quiet, json, keep, steps: Cell::new(0) }
    }

    fn say(&self, text: &str) -> Result<(), Failure> {
        if self.silent { Ok(()) } else { output::print(text) }
    }

    pub fn begin(&self, dir: &Path) -> Result<(), Failure> {
        let fate = if self.keep { "kept" } else { "removed" };
        self.say(&format!(
            "penstock demo: two days in the life of a machine's disk\nAll of it happens in {} and is {fate} at the end.\n",
            dir.display()
        ))
    }

    pub fn step(&self, title: &str) -> Result<(), Failure> {
        self.steps.set(self.steps.get() + 1);
        self.say(&format!("\n{}. {title}\n", self.steps.get()))
    }

    pub fn disk(&self, disk: &Disk, staged: &Staged, duration_ms: u64) -> Result<(), Failure> {
        let what = match disk.why_image() {
            None => format!("It is the block device {}, and is backed up as such.", disk.path().display()),
            Some(why) => format!("It is an image file ({why}), and is backed up as such."),
        };
        self.say(&format!(
            "   {} of ext4 with {} ({}) copied from /usr, in {}.\n   {what}\n",
            units::size(disk.size_bytes()),
            units::plural(staged.files, "file"),
            units::size(staged.bytes),
            units::duration(duration_ms),
        ))
    }

    pub fn repository(&self, repo: &Repository) -> Result<(), Failure> {
        let config = repo.config();
        self.say(&format!(
            "   {}, chunks of {} on average, packs of {}.\n",
            init::encryption_text(config.encryption),
            units::size(config.chunk_bytes.into()),
            units::size(config.pack_bytes.into()),
        ))
    }

    pub fn backup(&self, done: &backup::Done) -> Result<(), Failure> {
        self.say(&indented(&done.facts().text()))
    }

    pub fn second_backup(&self, first: &backup::Done, second: &backup::Done) -> Result<(), Failure> {
        self.backup(second)?;
        let (before, now) = (first.report.totals.stored_bytes, second.report.totals.stored_bytes);
        self.say(&format!(
            "   {} were stored, {} of the first day's {}: the rest was there already.\n",
            units::size(now),
            units::percent(now, before),
            units::size(before),
        ))
    }

    pub fn changes(&self, changes: &Changes, disk: &Disk) -> Result<(), Failure> {
        let how = if disk.why_image().is_none() { "mounted" } else { "with debugfs" };
        self.say(&format!(
            "   The disk was changed ({how}): a log grew by {}, {} came ({}), {} were modified, {} were removed.\n",
            units::size(changes.appended_bytes),
            units::plural(changes.added_files, "file"),
            units::size(changes.added_bytes),
            changes.modified_files,
            changes.removed_files,
        ))
    }

    pub fn restore(&self, done: &restore::Done) -> Result<(), Failure> {
        self.say(&indented(&done.facts().text()))
    }

    pub fn incremental(&self, done: &restore::Done) -> Result<(), Failure> {
        self.restore(done)?;
        let report = &done.report;
        let touched = report.written_bytes + report.zeroed_bytes;
        self.say(&format!(
            "   {} of {} were touched ({}): comparing two manifests says what differs, no data is read for it.\n",
            units::size(touched),
            units::size(report.size_bytes),
            units::percent(touched, report.size_bytes),
        ))
    }

    pub fn compared(&self, compared: &Compared) -> Result<(), Failure> {
        let rate = units::rate(compared.bytes, compared.duration_ms);
        self.say(&match compared.first_difference {
            None => {
                format!("   Identical: all {} are the same (read at {rate}).\n", units::size(compared.bytes))
            }
            Some(offset) => {
                format!("   DIFFERENT from byte {offset} on. Please report this: it must never happen.\n")
            }
        })
    }

    /// The table, or the object.
    pub fn end(&self, results: &Results) -> Result<(), Failure> {
        if self.json {
            return output::print_json(&report(results));
        }
        self.say(&format!("\n{}", summary(results)))?;
        match &results.kept {
            None => self.say(&format!("Done in {}; everything is removed.\n", units::duration(results.duration_ms))),
            Some(dir) => self.say(&format!(
                "Done in {}. Look around:\n  penstock --repo {dir}/repository --password-file {dir}/passphrase list\nand remove it: rm -r {dir}\n",
                units::duration(results.duration_ms)
            )),
        }
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!(" {line}\n")).collect()
}

fn report(results: &Results) -> Report<'_> {
    Report {
        identical: results.identical,
        first_difference: results.first_difference,
        image_bytes: results.image_bytes,
        files: results.files,
        files_bytes: results.files_bytes,
        source_kind: results.source_kind,
        changes: results.changes,
        backups: [results.first.json(), results.second.json()],
        restores: [results.full.json(), results.incremental.json()],
        logical_bytes: results.stats.logical_bytes,
        data_bytes: results.stats.data_bytes,
        unique_bytes: results.stats.unique_bytes,
        stored_bytes: results.stats.stored_bytes,
        duration_ms: results.duration_ms,
        kept: results.kept.as_deref(),
    }
}

fn summary(results: &Results) -> String {
    let mut table = Table::new(&["", ">disk", ">read", ">written", ">time", ">rate of the disk"]);
    for (label, done) in [("first backup", &results.first), ("second backup", &results.second)] {
        let (totals, ms) = (&done.report.totals, done.report.duration_ms);
        let cells = [totals.read_bytes, totals.stored_bytes];
        table.row(row(label, done.size_bytes(), cells, ms));
    }
    for (label, done) in [("full restore", &results.full), ("incremental restore", &results.incremental)] {
        let report = &done.report;
        table.row(row(
            label,
            report.size_bytes,
            [report.fetched_bytes, report.written_bytes],
            report.duration_ms,
        ));
    }
    let stats = &results.stats;
    format!(
        "{}\n{} of disks hold {} of data; {} of that are unique, and are stored in {}{}.\n",
        table.text(),
        units::size(stats.logical_bytes),
        units::size(stats.data_bytes),
        units::size(stats.unique_bytes),
        units::size(stats.stored_bytes),
        units::ratio(stats.data_bytes, stats.stored_bytes)
            .map(|ratio| format!(" ({ratio})"))
            .unwrap_or_default(),
    )
}

fn row(label: &str, disk_bytes: u64, [read, written]: [u64; 2], ms: u64) -> Vec<String> {
    vec![
        label.into(),
        units::size(disk_bytes),
        units::size(read),
        units::size(written),
        units::duration(ms),
        units::rate(disk_bytes, ms),
    ]
}
