//! Exit codes, and what leads to them. The table is part of the contract: `docs/CLI.md`.

use std::io;

use penstock_engine::Error;

/// How the program ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// All that was asked for.
    Done = 0,
    /// Failed, for a reason that has no code of its own.
    Failed = 1,
    /// Arguments that make no sense; clap ends with the same code.
    Usage = 2,
    /// Done in part: what could be.
    InPart = 3,
    /// No repository at the location.
    NotARepository = 10,
    /// The passphrase or key file opens nothing.
    WrongKey = 11,
    /// Bytes of the repository are damaged or missing.
    Damage = 12,
    /// Written by a later version.
    NewerVersion = 13,
    /// A source or target that is not safe to read or overwrite.
    Refused = 14,
    /// Data has to be thawed first.
    Archived = 15,
    /// Stopped by the user, as a shell reports SIGINT.
    Interrupted = 130,
}

/// What a verb returns.
pub type Outcome = Result<Exit, Failure>;

/// Why a verb did not finish.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The engine said so.
    #[error(transparent)]
    Engine(#[from] Error),
    /// Something of the machine around it.
    #[error("{0}")]
    Failed(String),
    /// Packs have to be thawed first.
    #[error("{0}")]
    Archived(String),
    /// Whoever read standard output has had enough (`penstock list | head`).
    #[error("standard output is closed")]
    OutputClosed,
}

impl Failure {
    /// Arguments that contradict each other, or the rules.
    pub fn usage(what: impl Into<String>) -> Failure {
        Failure::Engine(Error::Invalid { what: what.into() })
    }

    /// A failed call of the operating system.
    pub fn io(action: &'static str, object: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Failure {
        let with_context = Error::io(action, object);
        move |source| Failure::Engine(with_context(source))
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Failure::Engine(error) => exit_of(error),
            Failure::Failed(_) => Exit::Failed,
            Failure::Archived(_) => Exit::Archived,
            Failure::OutputClosed => Exit::Done,
        }
    }

    /// One word for programs, in the `error` event of `--json`.
    pub fn kind(&self) -> &'static str {
        match self {
            Failure::Engine(error) => kind_of(error),
            Failure::Failed(_) => "failed",
            Failure::Archived(_) => "archived",
            Failure::OutputClosed => "output_closed",
        }
    }

    /// True if the user stopped it.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Failure::Engine(Error::Cancelled))
    }
}

/// `Invalid` is a usage error; `NoSuchPoint` is not: the arguments made sense, the repository had nothing for them.
fn exit_of(error: &Error) -> Exit {
    match error {
        Error::NotARepository { .. } => Exit::NotARepository,
        Error::WrongKey { .. } => Exit::WrongKey,
        Error::NewerVersion { .. } => Exit::NewerVersion,
        Error::Damaged { .. } | Error::Missing { .. } | Error::SegmentGone { .. } => Exit::Damage,
        Error::SourceRefused { .. } | Error::TargetRefused { .. } => Exit::Refused,
        Error::Archived { .. } => Exit::Archived,
        Error::Invalid { .. } => Exit::Usage,
        Error::Cancelled => Exit::Interrupted,
        _ => Exit::Failed,
    }
}

fn kind_of(error: &Error) -> &'static str {
    match error {
        Error::Io { .. } | Error::TargetFull { .. } => "io",
        Error::Remote { .. } => "object_store",
        Error::NotARepository { .. } => "not_a_repository",
        Error::AlreadyExists { .. } => "already_exists",
        Error::WrongKey { .. } => "wrong_key",
        Error::NewerVersion { .. } => "newer_version",
        Error::Damaged { .. } => "damaged",
        Error::Missing { .. } | Error::SegmentGone { .. } => "missing",
        Error::NoSuchPoint { .. } => "no_such_point",
        Error::SourceRefused { .. } => "source_refused",
        Error::TargetRefused { .. } => "target_refused",
        Error::Archived { .. } => "archived",
        Error::Invalid { .. } => "invalid",
        Error::Cancelled => "interrupted",
        _ => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_the_code_of_the_contract() {
        let s = String::new;
        for (error, code) in [
            (Error::io("read", "x")(io::Error::other("y")), 1),
            (Error::Remote { action: "read", object: s(), why: s(), advice: s() }, 1),
            (Error::NotARepository { location: s(), why: s() }, 10),
            (Error::AlreadyExists { location: s(), what: s() }, 1),
            (Error::WrongKey { location: s(), why: s() }, 11),
            (Error::NewerVersion { object: s(), found: 2, supported: 1 }, 13),
            (Error::Damaged { object: s(), what: s() }, 12),
            (Error::Missing { object: s(), needed_by: s() }, 12),
            (Error::SegmentGone { object: s() }, 12),
            (Error::NoSuchPoint { what: s() }, 1),
            (Error::SourceRefused { source_name: s(), why: s() }, 14),
            (Error::TargetRefused { target: s(), why: s() }, 14),
            (Error::Archived { object: s() }, 15),
            (Error::TargetFull { object: s(), source: io::Error::other("y"), advice: "" }, 1),
            (Error::Invalid { what: s() }, 2),
            (Error::Cancelled, 130),
        ] {
            let failure = Failure::from(error);
            assert_eq!(failure.exit() as u8, code, "{failure:?}");
        }
        assert_eq!(Failure::Failed(s()).exit(), Exit::Failed);
        assert_eq!(Failure::OutputClosed.exit(), Exit::Done);
    }
}
