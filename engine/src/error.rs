//! Errors of the engine. Callers branch on the variant; the text says what failed, on which object, and what to do.

use std::fmt;
use std::io;

/// The result of every fallible engine call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. `object` names a path, device or repository key; it never carries a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operating-system or store call failed.
    #[error("cannot {action} {object}: {source}{}", hint_for(.source))]
    Io {
        /// What was tried, as a verb: "read", "write", "open".
        action: &'static str,
        /// On what, with the offset where there is one.
        object: String,
        /// The cause.
        source: io::Error,
    },
    /// An object store refused, failed, or did not answer.
    #[error("cannot {action} {object}: {why} ({advice})")]
    Remote {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what: the URL of the object.
        object: String,
        /// The service's words, with the id of the request where it gave one.
        why: String,
        /// What the user can do.
        advice: String,
    },
    /// No repository at the location.
    #[error("no penstock repository at {location}: {why}. Create one with `penstock init`, or check --repo")]
    NotARepository {
        /// Where it was looked for.
        location: String,
        /// What was found instead.
        why: String,
    },
    /// `init` found a repository already there.
    #[error("{location} already holds {what}; `init` never overwrites. Choose another place")]
    AlreadyExists {
        /// Where.
        location: String,
        /// What is there.
        what: String,
    },
    /// No access key opens this repository with the passphrase or key given.
    #[error("wrong key for the repository at {location}: {why}")]
    WrongKey {
        /// Which repository.
        location: String,
        /// Which keys were tried.
        why: String,
    },
    /// The object was written by a later format version.
    #[error(
        "{object} is written in format version {found}, this program reads up to {supported}: update penstock"
    )]
    NewerVersion {
        /// Repository key of the object.
        object: String,
        /// Version found.
        found: u32,
        /// Highest version known here.
        supported: u32,
    },
    /// Bytes are not what was written: truncated, flipped, swapped, or not ours.
    #[error("{object} is damaged: {what}. `penstock verify` lists what is hurt")]
    Damaged {
        /// Repository key of the object.
        object: String,
        /// Where in it, and what was expected.
        what: String,
    },
    /// Something that a live object refers to is not there.
    #[error("{object} is missing, but {needed_by} needs it. `penstock verify` lists what is hurt")]
    Missing {
        /// Repository key or id.
        object: String,
        /// Who refers to it.
        needed_by: String,
    },
    /// An index segment that was listed is not there: a merge has superseded it since, and its rows are in the next list.
    #[error("{object} is missing, but the index needs it. `penstock verify` lists what is hurt")]
    SegmentGone {
        /// Repository key.
        object: String,
    },
    /// The object is in an archive class: it has to be thawed before it can be read.
    #[error(
        "{object} is archived and cannot be read before it is thawed: `penstock restore --thaw` asks for that"
    )]
    Archived {
        /// The URL of the object.
        object: String,
    },
    /// A recovery point or volume of that name does not exist, or the name is ambiguous.
    #[error("no such recovery point: {what}")]
    NoSuchPoint {
        /// What was asked for, and what there is.
        what: String,
    },
    /// The source cannot be backed up as it is.
    #[error("refusing to back up {source_name}: {why}")]
    SourceRefused {
        /// Path of the source.
        source_name: String,
        /// Why, and what the user can do.
        why: String,
    },
    /// The target cannot be written as it is.
    #[error("refusing to write {target}: {why}")]
    TargetRefused {
        /// Path of the target.
        target: String,
        /// Why, and what the user can do.
        why: String,
    },
    /// The target of a restore has no room left, or its quota is used up.
    #[error("cannot write {object}: {source} ({advice})")]
    TargetFull {
        /// Path of the target, with the offset where there is one.
        object: String,
        /// What the system said.
        source: io::Error,
        /// How the restore is made whole, once there is room.
        advice: &'static str,
    },
    /// An argument is out of range or contradicts another.
    #[error("{what}")]
    Invalid {
        /// What, and which values are accepted.
        what: String,
    },
    /// A writer could not keep its lease: what it relied on may be deleted.
    #[error(
        "the lease of this run in {location} is lost: it could not be renewed for half a day, or was removed. What it stored cannot be trusted to be complete; \
         run the same command again"
    )]
    LeaseLost {
        /// Which repository.
        location: String,
    },
    /// What depends on time cannot be decided.
    #[error(
        "{location}: {what}. What may be deleted depends on time, so nothing is. Set the clock (NTP) and run it again"
    )]
    ClockDisagrees {
        /// Which repository.
        location: String,
        /// Whose clocks, and by how much.
        what: String,
    },
    /// Others are at work on the same thing, and this run gave way.
    #[error("{location}: {what}. Run it again later")]
    Busy {
        /// Which repository.
        location: String,
        /// What they do.
        what: String,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Cancelled,
}

impl Error {
    /// An operating-system error with its context; use as `.map_err(Error::io("read", path))`.
    pub fn io(action: &'static str, object: impl fmt::Display) -> impl FnOnce(io::Error) -> Error {
        let object = object.to_string();
        move |source| Error::Io { action, object, source }
    }

    /// Damage in a repository object.
    pub fn damaged(object: impl fmt::Display, what: impl fmt::Display) -> Error {
        Error::Damaged { object: object.to_string(), what: what.to_string() }
    }

    /// The same error, with the repository named beside an object of which only the key is known: for operations on two repositories.
    pub fn in_repository(self, location: &str) -> Error {
        let named = |object: String| format!("{object} in {location}");
        match self {
            Error::Damaged { object, what } => Error::Damaged { object: named(object), what },
            Error::Missing { object, needed_by } => Error::Missing { object: named(object), needed_by },
            Error::SegmentGone { object } => Error::SegmentGone { object: named(object) },
            Error::NewerVersion { object, found, supported } => {
                Error::NewerVersion { object: named(object), found, supported }
            }
            other => other,
        }
    }

    /// True if there is no room left: the disk, the quota or the inodes are used up.
    pub fn is_full(&self) -> bool {
        let Error::Io { source, .. } = self else { return false };
        matches!(source.raw_os_error(), Some(libc::ENOSPC) | Some(libc::EDQUOT))
    }

    /// True where bytes of the repository are gone or wrong, which `verify` counts and restore reports as exit code 12.
    pub fn is_damage(&self) -> bool {
        matches!(self, Error::Damaged { .. } | Error::Missing { .. } | Error::SegmentGone { .. })
    }
}

/// What the user can do about the operating-system errors that have one usual cause.
fn hint_for(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOSPC) => {
            " (the disk is full: free some space and run the same command again, it continues from what is stored)"
        }
        Some(libc::EDQUOT) => " (the disk quota is used up)",
        Some(libc::EACCES) | Some(libc::EPERM) => " (run as root, or as a user that may open it)",
        Some(libc::EROFS) => " (the filesystem is mounted read-only)",
        Some(libc::EIO) => " (the device reports a failed transfer: see the kernel log)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_object_and_a_way_out() {
        let full = Error::io("write", "/mnt/repo/tmp/x")(io::Error::from_raw_os_error(libc::ENOSPC));
        let text = full.to_string();
        assert!(text.contains("/mnt/repo/tmp/x") && text.contains("free some space"), "{text}");
        let newer = Error::NewerVersion { object: "config".into(), found: 9, supported: 1 };
        assert_eq!(
            newer.to_string(),
            "config is written in format version 9, this program reads up to 1: update penstock"
        );
        assert!(Error::damaged("data/ab", "x").is_damage());
        let placed = Error::damaged("data/ab", "x").in_repository("/r");
        assert!(placed.is_damage() && placed.to_string().starts_with("data/ab in /r is damaged: x"));
        assert!(!Error::Cancelled.is_damage());
    }
}
