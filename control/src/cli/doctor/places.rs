//! Directories and the repository.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use penstock_engine::Error;
use penstock_engine::repo::{Listed, Repository};
use penstock_engine::store::{Exclusive, Place};
use rustix::fs::OFlags;

use super::super::check::Check;
use super::super::exit::Failure;
use super::super::session::Session;
use super::super::{access, host, init, list, units};

pub fn checks(session: &Session) -> Vec<Check> {
    let mut checks = vec![state_dir(), direct("O_DIRECT, temporary files", &std::env::temp_dir())];
    let Some(url) = session.globals.repo.as_deref().filter(|url| !url.is_empty()) else {
        return checks;
    };
    if let Some(dir) = local_dir(url).filter(|dir| dir.is_dir()) {
        checks.push(free_space(&dir));
        checks.push(direct("O_DIRECT, repository", &dir));
    }
    checks.extend(repository(session));
    checks
}

/// The directory of a local repository. What is no place at all is told when the repository is opened.
fn local_dir(url: &str) -> Option<PathBuf> {
    Place::parse(url).ok()?.dir().map(Path::to_owned)
}

fn state_dir() -> Check {
    const NAME: &str = "state directory";
    let advice =
        "killed backups start afresh without it: set PENSTOCK_STATE_DIR to a directory that can be written";
    let dir = match host::state_dir() {
        Ok(dir) => dir,
        Err(failure) => return Check::fail(NAME, failure.to_string(), advice),
    };
    match fs::create_dir_all(&dir)
        .and_then(|()| tempfile::Builder::new().prefix(".doctor-").tempfile_in(&dir))
    {
        Ok(_) => Check::ok(NAME, dir.display().to_string()),
        Err(error) => Check::fail(NAME, format!("{}: {error}", dir.display()), advice),
    }
}

/// Opens a new file in `dir` with O_DIRECT, under a name that nothing else uses, and removes it.
fn direct(name: &'static str, dir: &Path) -> Check {
    let path = dir.join(format!(".penstock-doctor-{}", std::process::id()));
    let open = |flags: OFlags| -> io::Result<()> {
        let result = OpenOptions::new()
            .write(true)
            .create_new(true)
            .custom_flags(flags.bits() as i32)
            .open(&path)
            .map(drop);
        // O_DIRECT is refused after the file was made.
        let _ = fs::remove_file(&path);
        result
    };
    let place = dir.display();
    match (open(OFlags::DIRECT), open(OFlags::empty())) {
        (Ok(()), _) => Check::ok(name, format!("works in {place}")),
        (Err(error), Ok(())) => Check::warn(
            name,
            format!("refused in {place}: {error}"),
            "the page cache is used instead: slower for large disks; ext4 and xfs allow it",
        ),
        (Err(_), Err(error)) => Check::warn(
            name,
            format!("{place} cannot be written: {error}"),
            "backups need it; restores do not",
        ),
    }
}

fn free_space(dir: &Path) -> Check {
    const NAME: &str = "free space, repository";
    match host::free_bytes(dir) {
        Ok(bytes) if bytes < 1 << 30 => Check::warn(
            NAME,
            units::size(bytes),
            "a backup that runs out of space stops (and continues later)",
        ),
        Ok(bytes) => Check::ok(NAME, units::size(bytes)),
        Err(error) => Check::warn(NAME, error.to_string(), "the filesystem does not say"),
    }
}

fn repository(session: &Session) -> Vec<Check> {
    const NAME: &str = "repository";
    let repo = match open(session) {
        Ok(repo) => repo,
        Err(failure) => return vec![Check::fail(NAME, failure.to_string(), advice_for(&failure))],
    };
    let config = repo.config();
    let encryption = init::encryption_text(config.encryption);
    let mut checks = vec![Check::ok(
        NAME,
        format!(
            "{}: opens, format version {}, encryption {encryption}",
            repo.location(),
            penstock_engine::format::VERSION
        ),
    )];
    checks.push(exclusive(&repo));
    let points = repo.points();
    if let Some(warning) =
        points.as_ref().ok().and_then(|listed| list::future_warning(listed, repo.unix_ms()))
    {
        let advice = "set the clock of the machine that made them; `penstock list` shows when they are dated";
        checks.push(Check::warn("recovery points, time", warning, advice));
    }
    checks.push(match points {
        Ok(listed) => {
            let damaged = listed.iter().filter(|item| matches!(item, Listed::Damaged { .. })).count();
            let found = units::plural(listed.len() as u64, "recovery point");
            match damaged {
                0 => Check::ok("recovery points", found),
                _ => Check::fail(
                    "recovery points",
                    format!("{found}, {damaged} damaged"),
                    "`penstock verify` lists what is hurt",
                ),
            }
        }
        Err(error) => {
            Check::fail("recovery points", error.to_string(), "`penstock verify` lists what is hurt")
        }
    });
    checks
}

/// Tries that putting never replaces what is there.
fn exclusive(repo: &Repository) -> Check {
    const NAME: &str = "exclusive puts";
    match repo.assure_exclusive_puts(true) {
        Ok(Exclusive::Holds) => Check::ok(NAME, "what is there is never replaced"),
        Ok(Exclusive::Untried(why)) => Check::warn(
            NAME,
            format!("not tried: {why}"),
            "these credentials may only read: backups need more",
        ),
        Err(error) if is_read_only(&error) => {
            Check::warn(NAME, format!("not tried: {error}"), "it cannot be written: backups need that")
        }
        Err(error) => Check::fail(
            NAME,
            error.to_string(),
            "take another filesystem or service: here, backups could destroy each other",
        ),
    }
}

fn is_read_only(error: &Error) -> bool {
    let codes =
        [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied, io::ErrorKind::StorageFull];
    matches!(error, Error::Io { source, .. } if codes.contains(&source.kind()))
}

/// As every verb opens it, but without asking: a check-up also runs where nobody answers.
fn open(session: &Session) -> Result<Repository, Failure> {
    let store = session.store()?;
    if Repository::needs_key(&*store)? && !access::is_given(&session.globals, access::Purpose::Open) {
        return Err(Failure::usage("it is encrypted and no key was given"));
    }
    session.repository()
}

fn advice_for(failure: &Failure) -> &'static str {
    match failure {
        Failure::Engine(Error::NotARepository { .. }) => "check --repo, or create one with `penstock init`",
        Failure::Engine(Error::WrongKey { .. }) => "use the passphrase or key file that it was created with",
        Failure::Engine(Error::Invalid { what }) if what.starts_with("--repo") => "see above",
        Failure::Engine(Error::Invalid { .. }) => {
            "name its key by --password-file, PENSTOCK_PASSWORD or --key-file"
        }
        Failure::Engine(Error::NewerVersion { .. }) => "update penstock",
        _ => "see above; `penstock verify` tells more once it opens",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Status;

    #[test]
    fn only_local_repositories_have_a_directory() {
        assert_eq!(local_dir("/backup"), Some(PathBuf::from("/backup")));
        assert_eq!(local_dir("file:///backup"), Some(PathBuf::from("/backup")));
        assert_eq!(local_dir("s3://bucket/x"), None);
        assert_eq!(local_dir("memory:"), None);
        assert_eq!(local_dir("s3:bucket/x"), None);
    }

    #[test]
    fn the_trial_file_is_gone_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        assert_ne!(direct("x", dir.path()).status, Status::Fail);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let missing = direct("x", &dir.path().join("none"));
        assert_eq!(missing.status, Status::Warn);
        assert!(missing.found.contains("cannot be written"));
    }
}
