//! `penstock doctor`: can this machine do its work, and what to do where it cannot.

use super::check;
use super::exit::Outcome;
use super::session::Session;

mod cloud;
mod machine;
mod places;

const EXAMPLES: &str = "\
Examples:
  penstock doctor
  penstock doctor --repo /backup/repo --password-file /etc/penstock.pass
  penstock doctor --json | jq '.checks[] | select(.status != \"ok\")'";

/// Check this machine and, with --repo, the repository: exit code 1 if anything fails
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

/// Makes all checks.
pub fn run(_: &Args, session: &Session) -> Outcome {
    let mut checks = machine::checks();
    checks.extend(places::checks(session));
    checks.extend(cloud::check());
    check::finish(session, &checks)
}
