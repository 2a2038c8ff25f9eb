//! `penstock demo`: the main job from end to end on this machine's own files.

mod changes;
mod compare;
mod disk;
mod files;
mod story;
mod tools;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use penstock_engine::backup::VolumeSource;
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::format::point::RecoveryPoint;
use penstock_engine::id::random_bytes;
use penstock_engine::repo::{InitOptions, Repository};
use penstock_engine::restore::{RestoreOptions, RestoreTarget};
use penstock_engine::source::{self, OpenOptions};
use penstock_engine::{stats, store};
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::exit::{Exit, Failure, Outcome};
use super::progress::Mode;
use super::session::Session;
use super::{backup, host, restore, units};
use changes::Changes;
use disk::Disk;
use files::Staged;
use story::{Results, Story};

/// Smaller disks show nothing, and ext4 wants room for its journal.
const FILES_BYTES_MIN: u64 = 16 << 20;
/// The name that the demo's backups go by.
const NAME: &str = "demo";

const EXAMPLES: &str = "\
Examples:
  penstock demo                        about a minute, about 2.5 GiB in /var/tmp
  penstock demo --size 128MiB          a small one
  penstock demo --dir /mnt/fast --keep keep the repository and look around in it
  penstock demo --json | jq .identical";

/// Back up, change, back up again and restore a disk made of this machine's own files
///
/// No cloud, no configuration and no root needed; where root and loop devices are there, a real block device is used.
/// Everything is removed at the end, also on Ctrl-C.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// How much of this machine's files to use; about three times as much space is needed
    #[arg(long, value_name = "SIZE", default_value = "768MiB", value_parser = units::parse_size)]
    size: u64,

    /// Where to work [default: $TMPDIR, or /var/tmp]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Leave everything there at the end
    #[arg(long)]
    keep: bool,
}

/// Paths of the demo, all below its own directory.
struct Place {
    dir: PathBuf,
}

impl Place {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// Tells the story, then removes what it made.
pub fn run(args: &Args, session: &Session) -> Outcome {
    let started = Instant::now();
    if args.size < FILES_BYTES_MIN {
        return Err(Failure::usage(format!("--size: at least {} makes sense", units::size(FILES_BYTES_MIN))));
    }
    let _hold = session.interrupt.hold();
    let (mke2fs, debugfs) = (tools::find_ext4("mke2fs")?, tools::find_ext4("debugfs")?);
    let parent = parent_dir(args);
    check_space(&parent, args.size)?;
    let temp = new_dir(&parent).map_err(Failure::io("create a directory in", parent.display()))?;
    session.interrupt.leaves(Some(temp.path().display().to_string()));
    let place = Place { dir: temp.path().to_owned() };
    let story = Story::new(session, args.keep);
    story.begin(&place.dir)?;
    let mut results = {
        let demo = Demo { session, story: &story, place: &place };
        let passphrase = Zeroizing::new(hex_of(random_bytes::<16>()?));
        let mut results = demo.tell(args.size, &mke2fs, &debugfs, &passphrase)?;
        if args.keep {
            keep_passphrase(&place, &passphrase)?;
            results.kept = Some(place.dir.display().to_string());
        }
        results
    };
    results.duration_ms = started.elapsed().as_millis() as u64;
    match args.keep {
        true => drop(temp.keep()),
        false => temp.close().map_err(Failure::io("remove", place.dir.display()))?,
    }
    session.interrupt.leaves(None);
    story.end(&results)?;
    Ok(if results.identical { Exit::Done } else { Exit::Damage })
}

fn parent_dir(args: &Args) -> PathBuf {
    let of_variable = || std::env::var_os("TMPDIR").filter(|value| !value.is_empty()).map(PathBuf::from);
    args.dir.clone().or_else(of_variable).unwrap_or_else(|| "/var/tmp".into())
}

/// Disk and restored disk hold the files once each; the repository and, for a while, the copied files take the rest.
fn check_space(parent: &Path, files_bytes: u64) -> Result<(), Failure> {
    let needed = files_bytes.saturating_mul(3).saturating_add(256 << 20);
    let free = host::free_bytes(parent).map_err(Failure::io("look at", parent.display()))?;
    match free >= needed {
        true => Ok(()),
        false => Err(Failure::Failed(format!(
            "the demo needs {} in {}, {} are free: use --dir DIR for another place, or --size SIZE for a smaller demo",
            units::size(needed),
            parent.display(),
            units::size(free),
        ))),
    }
}

/// Readable by nobody else: it holds copies of files, some of which may be root's alone.
fn new_dir(parent: &Path) -> std::io::Result<TempDir> {
    tempfile::Builder::new()
        .prefix("penstock-demo-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)
}

fn hex_of(bytes: [u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn keep_passphrase(place: &Place, passphrase: &str) -> Result<(), Failure> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let path = place.at("passphrase");
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|mut file| writeln!(file, "{passphrase}")).map_err(Failure::io("write", path.display()))
}

/// One telling.
struct Demo<'a> {
    session: &'a Session,
    story: &'a Story,
    place: &'a Place,
}

impl Demo<'_> {
    fn tell(
        &self,
        files_bytes: u64,
        mke2fs: &Path,
        debugfs: &Path,
        passphrase: &str,
    ) -> Result<Results, Failure> {
        let (disk, staged) = self.build_disk(files_bytes, mke2fs)?;
        let repo = self.init(passphrase)?;
        self.story.step("The first backup: every block is read, hashed, compressed and encrypted")?;
        let first = self.back_up(&repo, &disk)?;
        self.story.backup(&first)?;
        let changes = self.change(&disk, &staged, files_bytes, debugfs)?;
        self.story.step("The second backup: only what changed is stored")?;
        let second = self.back_up(&repo, &disk)?;
        self.story.second_backup(&first, &second)?;
        let (full, incremental) = self.restore(&repo, &first.report.point, &second.report.point)?;
        self.story.step("Byte for byte: the restored disk against the original")?;
        let compared =
            compare::files(disk.path(), &self.place.at("restored.img"), || self.session.interrupt.check())?;
        self.story.compared(&compared)?;
        let stats = stats::collect(&repo)?;
        let image_bytes = disk.size_bytes();
        let source_kind = disk.kind();
        disk.close()?;
        Ok(Results {
            image_bytes,
            files: staged.files,
            files_bytes: staged.bytes,
            source_kind,
            changes,
            first,
            second,
            full,
            incremental,
            identical: compared.is_identical(),
            first_difference: compared.first_difference,
            stats,
            duration_ms: 0,
            kept: None,
        })
    }

    fn build_disk(&self, files_bytes: u64, mke2fs: &Path) -> Result<(Disk, Staged), Failure> {
        self.story.step("A machine's disk, made of this machine's own files")?;
        let started = Instant::now();
        let check = || self.session.interrupt.check();
        let staging = self.place.at("staging");
        let staged = files::stage(&staging, files_bytes, &check)?;
        let image_bytes = (files_bytes * 5 / 2).next_multiple_of(64 << 20);
        let image = self.place.at("disk.img");
        disk::make_ext4(mke2fs, &image, image_bytes, &staging, staged.entries, &self.session.interrupt)?;
        std::fs::remove_dir_all(&staging).map_err(Failure::io("remove", staging.display()))?;
        let disk = Disk::open(image, image_bytes, self.place.at("mounted"))?;
        self.story.disk(&disk, &staged, started.elapsed().as_millis() as u64)?;
        check()?;
        Ok((disk, staged))
    }

    fn init(&self, passphrase: &str) -> Result<Repository, Failure> {
        self.story.step("A repository, encrypted with a random passphrase")?;
        let path = self.place.at("repository");
        let store = store::open(&store::Place::Dir(path.clone()), true, &store::Limits::default())?;
        let options = InitOptions { program: host::PROGRAM.into(), ..InitOptions::default() };
        let repo = Repository::init(store, &options, &AccessKey::passphrase(passphrase))?;
        self.story.repository(&repo)?;
        Ok(repo)
    }

    fn back_up(&self, repo: &Repository, disk: &Disk) -> Result<backup::Done, Failure> {
        let source = source::open(disk.path(), OpenOptions::default())?;
        let volume = VolumeSource { name: "disk".into(), source, changed_extents: None };
        let options = backup::base_options(self.session, NAME, self.place.at("state"));
        backup::perform(self.session, self.mode(), repo, vec![volume], &options)
    }

    fn change(
        &self,
        disk: &Disk,
        staged: &Staged,
        files_bytes: u64,
        debugfs: &Path,
    ) -> Result<Changes, Failure> {
        self.story.step("A day passes: logs grow, files come, change and go")?;
        let (list, changes) = changes::plan(staged, files_bytes)?;
        disk.apply(&list, debugfs, &self.place.at("changes"), &self.session.interrupt)?;
        self.story.changes(&changes, disk)?;
        Ok(changes)
    }

    fn restore(
        &self,
        repo: &Repository,
        first: &RecoveryPoint,
        second: &RecoveryPoint,
    ) -> Result<(restore::Done, restore::Done), Failure> {
        let target = self.place.at("restored.img");
        let onto_target = |point: &RecoveryPoint, base: Option<RecoveryPoint>| {
            let volume = point
                .volumes
                .first()
                .ok_or_else(|| Failure::Failed(format!("recovery point {} has no volume", point.id)))?;
            let options =
                RestoreOptions { base, ..restore::base_options(self.session, Some(self.place.at("state"))) };
            let path = RestoreTarget::Path(target.clone());
            restore::perform(self.session, self.mode(), repo, point, volume, path, &options)
        };
        self.story.step("A full restore of the first day")?;
        let full = onto_target(first, None)?;
        self.story.restore(&full)?;
        self.story.step("An incremental restore: the same target from the first day to the second")?;
        let incremental = onto_target(second, Some(first.clone()))?;
        self.story.incremental(&incremental)?;
        Ok((full, incremental))
    }

    /// Plain progress lines would only interrupt the story.
    fn mode(&self) -> Mode {
        match Mode::of(&self.session.globals) {
            Mode::Plain => Mode::Off,
            mode => mode,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passphrases_are_hex() {
        assert_eq!(hex_of([0xab; 16]), "ab".repeat(16));
    }

    #[test]
    fn too_little_space_is_said_with_a_way_out() {
        let text = check_space(Path::new("/"), 1 << 60).unwrap_err().to_string();
        assert!(text.contains("--dir") && text.contains("--size"), "{text}");
        assert!(
            check_space(Path::new("/"), 0).is_ok() || host::free_bytes(Path::new("/")).unwrap() < 256 << 20
        );
    }
}
