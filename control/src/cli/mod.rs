//! The command line: one file a verb, and the nouns they share.

mod access;
mod args;
mod backup;
mod cgroup;
mod check;
mod completions;
mod copy;
mod demo;
mod diff;
mod doctor;
mod ec2;
mod exit;
mod far;
mod forget;
mod gc;
mod host;
mod init;
mod interrupt;
mod keep;
mod list;
mod lock;
mod man;
mod output;
mod progress;
mod repair;
mod restore;
mod session;
mod show;
mod spent;
mod stats;
mod thaw;
mod units;
mod verify;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use args::Globals;
use exit::{Failure, Outcome};
use interrupt::Interrupt;
use progress::LogWriter;
use session::Session;

const EXAMPLES: &str = "\
Examples:
  penstock demo                                            see it work on this machine's own files
  export PENSTOCK_REPO=/backup/repo PENSTOCK_PASSWORD_FILE=/etc/penstock.pass
  penstock init
  penstock backup /dev/nvme1n1 --name web-01
  penstock list
  penstock restore latest:web-01 /dev/nvme2n1

Exit codes: 0 done, 1 failed, 2 usage, 10 no repository there, 11 wrong key, 12 damage found,
13 written by a newer version, 14 source or target refused, 15 data has to be thawed, 130 interrupted.";

/// Fast, deduplicated, encrypted backup of block devices and EC2 machines
#[derive(Parser, Debug)]
#[command(name = "penstock", version, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Init(init::Args),
    Backup(backup::Args),
    List(list::Args),
    Show(show::Args),
    Diff(diff::Args),
    Restore(restore::Args),
    Verify(verify::Args),
    Repair(repair::Args),
    Copy(copy::Args),
    Forget(forget::Args),
    Gc(gc::Args),
    Lock(lock::Args),
    Ec2(ec2::Args),
    Stats(stats::Args),
    Doctor(doctor::Args),
    Demo(demo::Args),
    Completions(completions::Args),
    Man(man::Args),
}

impl Verb {
    fn run(&self, session: &Session) -> Outcome {
        match self {
            Verb::Init(args) => init::run(args, session),
            Verb::Backup(args) => backup::run(args, session),
            Verb::List(args) => list::run(args, session),
            Verb::Show(args) => show::run(args, session),
            Verb::Diff(args) => diff::run(args, session),
            Verb::Restore(args) => restore::run(args, session),
            Verb::Verify(args) => verify::run(args, session),
            Verb::Repair(args) => repair::run(args, session),
            Verb::Copy(args) => copy::run(args, session),
            Verb::Forget(args) => forget::run(args, session),
            Verb::Gc(args) => gc::run(args, session),
            Verb::Lock(args) => lock::run(args, session),
            Verb::Ec2(args) => ec2::run(args, session),
            Verb::Stats(args) => stats::run(args, session),
            Verb::Doctor(args) => doctor::run(args, session),
            Verb::Demo(args) => demo::run(args, session),
            Verb::Completions(args) => completions::run(args),
            Verb::Man(args) => man::run(args),
        }
    }

    /// What an interrupted run leaves.
    fn interrupted_text(&self) -> &'static str {
        match self {
            Verb::Backup(_) => "interrupted; what was stored is kept and found again by the next run",
            Verb::Restore(_) => {
                "interrupted; the target is incomplete: the same command with --resume continues"
            }
            Verb::Copy(_) => {
                "interrupted; what was sent is kept and found again by the next run, which continues"
            }
            Verb::Forget(_) => {
                "interrupted; what was not removed yet is as it was: the same command continues"
            }
            Verb::Repair(_) => "interrupted; what was mended stays so, the same command does the rest",
            Verb::Gc(_) => "interrupted; nothing is half done that the next run does not finish",
            Verb::Ec2(args) => args.interrupted_text(),
            Verb::Demo(_) => "interrupted; everything the demo made is removed",
            _ => "interrupted",
        }
    }
}

/// The program.
pub fn main() -> ExitCode {
    let Cli { globals, verb } = Cli::parse();
    start_log(&globals);
    host::raise_descriptors();
    let json = globals.json;
    let outcome = Interrupt::install().and_then(|interrupt| verb.run(&Session { globals, interrupt }));
    let exit = outcome.unwrap_or_else(|failure| {
        report(&failure, &verb, json);
        failure.exit()
    });
    ExitCode::from(exit as u8)
}

/// The last event of a `--json` run that failed.
#[derive(Serialize)]
struct ErrorEvent<'a> {
    event: &'static str,
    kind: &'static str,
    exit_code: u8,
    message: &'a str,
}

fn report(failure: &Failure, verb: &Verb, json: bool) {
    if matches!(failure, Failure::OutputClosed) {
        return;
    }
    let message =
        if failure.is_cancelled() { verb.interrupted_text().to_owned() } else { failure.to_string() };
    let event = ErrorEvent {
        event: "error",
        kind: failure.kind(),
        exit_code: failure.exit() as u8,
        message: &message,
    };
    match output::json_text(&event) {
        Ok(text) if json => output::note(&text),
        _ => output::note(&format!("penstock: {message}")),
    }
}

/// The log goes to standard error: warnings, more with `-v`, or what `PENSTOCK_LOG` selects.
fn start_log(globals: &Globals) {
    let level = match (globals.quiet, globals.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let filter = EnvFilter::try_from_env("PENSTOCK_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| LogWriter);
    if globals.json {
        builder.json().flatten_event(true).init();
    } else {
        let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        builder.compact().with_ansi(colours).with_target(false).without_time().init();
    }
}

/// The whole command line, for completions, man pages and tests.
fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_verb_explains_itself_by_examples() {
        for verb in command().get_subcommands_mut() {
            let help = verb.render_long_help().to_string();
            assert!(help.contains("Examples:"), "{}", verb.get_name());
            assert!(verb.get_about().is_some(), "{}", verb.get_name());
        }
    }

    #[test]
    fn global_options_stand_before_or_after_the_verb() {
        for line in ["penstock --repo /r --json list", "penstock list --repo /r --json"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.globals.repo.as_deref(), Some("/r"));
            assert!(cli.globals.json);
        }
    }

    #[test]
    fn contradictions_are_usage_errors() {
        for line in [
            "penstock list -q -v",
            "penstock list --password-file a --key-file b",
            "penstock backup a --name n --parent p --no-parent",
            "penstock backup a",
            "penstock backup --name n",
            "penstock backup a --name n --changed-extents f --no-parent",
            "penstock verify --sample 5%",
            "penstock verify --read-data --sample 5% --resume",
            "penstock verify --max-time soon",
            "penstock restore p t --base q --compare",
            "penstock list --workers 0",
            "penstock init --chunk-size 64MB",
            "penstock copy --to b",
            "penstock copy latest",
            "penstock copy latest --all --to b",
            "penstock copy --all --name n --to b",
            "penstock copy latest --to b --to-key-file k --to-password-file p",
            "penstock forget",
            "penstock forget --dry-run",
            "penstock forget --name web",
            "penstock forget latest --keep-last 1",
            "penstock forget latest --name web",
            "penstock forget --keep-last -1",
            "penstock forget --keep-within 14",
            "penstock forget --keep-last 1 --time-zone Mars/Olympus",
            "penstock restore p t --thaw-wait",
            "penstock restore p t --thaw slowly",
            "penstock list --object-lock 0",
            "penstock",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn negative_compression_levels_are_values() {
        let cli = Cli::try_parse_from("penstock init --compression -5".split(' ')).unwrap();
        assert!(matches!(cli.verb, Verb::Init(args) if args.compression.as_deref() == Some("-5")));
    }
}
