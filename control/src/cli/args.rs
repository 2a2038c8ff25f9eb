//! Options that every verb takes, and small parsers that several share.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use penstock_engine::format::config::Compression;
use penstock_engine::io::IoEngineChoice;

use super::far::Far;
use super::{cgroup, units};

/// Options of all verbs.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Where the repository is: a path, file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix
    #[arg(long, global = true, env = "PENSTOCK_REPO", hide_env_values = true, value_name = "URL")]
    pub repo: Option<String>,

    /// Read the passphrase from this file (one trailing newline is dropped) [env: PENSTOCK_PASSWORD_FILE, PENSTOCK_PASSWORD]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "key_file")]
    pub password_file: Option<PathBuf>,

    /// Open with a key file of at least 32 random bytes instead of a passphrase
    #[arg(long, global = true, value_name = "FILE")]
    pub key_file: Option<PathBuf>,

    /// Threads that hash, compress and encrypt [default: number of cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,

    /// Threads that read the source [default: chosen]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub readers: Option<u16>,

    /// Reads or writes in flight on a source or target [default: chosen]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub queue_depth: Option<u16>,

    /// Say more on standard error; twice for debugging
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,

    /// No progress, no warnings, no notes: errors only
    #[arg(short, long, global = true)]
    pub quiet: bool,

    /// One JSON object on standard output, events as one JSON object a line on standard error
    #[arg(long, global = true)]
    pub json: bool,

    /// Repositories in object stores
    #[command(flatten)]
    pub far: Far,
}

impl Globals {
    /// Worker threads: as asked, or one a core, as far as the control group's memory goes.
    pub fn worker_count(&self) -> usize {
        let limit = cgroup::memory_max_bytes();
        let fitting = limit.map_or(usize::MAX, cgroup::workers_within);
        let limit = units::size(limit.unwrap_or(0));
        match self.workers.map(usize::from) {
            Some(workers) if workers > fitting => {
                let needed = units::size(cgroup::memory_of(workers));
                tracing::warn!(
                    "--workers {workers} may need {needed} of memory, the control group allows {limit}: {fitting} fit"
                );
                workers
            }
            Some(workers) => workers,
            None => {
                let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
                if cores > fitting {
                    tracing::info!(
                        "{fitting} workers on {cores} cores: the control group allows {limit} of memory"
                    );
                }
                cores.min(fitting)
            }
        }
    }
}

/// `--io-engine`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum IoEngineArg {
    /// io_uring where the kernel allows it, else pread
    #[default]
    Auto,
    /// io_uring or nothing
    Uring,
    /// Plain pread and pwrite
    Pread,
}

impl From<IoEngineArg> for IoEngineChoice {
    fn from(arg: IoEngineArg) -> Self {
        match arg {
            IoEngineArg::Auto => Self::Auto,
            IoEngineArg::Uring => Self::Uring,
            IoEngineArg::Pread => Self::Pread,
        }
    }
}

/// The name of a machine. No `/`, which parts recovery point and volume in `POINT/VOLUME`.
pub fn parse_name(text: &str) -> Result<String, String> {
    match text {
        "" => Err("a name needs at least one character".into()),
        _ if text.contains('/') || text.chars().any(char::is_control) => {
            Err(format!("{text:?}: a name has no '/' and no control characters"))
        }
        _ => Ok(text.to_owned()),
    }
}

/// `K=V` of `--tag`.
pub fn parse_tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?}: write a tag as KEY=VALUE")),
    }
}

/// `auto`, `auto:LOWEST..HIGHEST`, `off` or a zstd level.
pub fn parse_compression(text: &str) -> Result<Compression, String> {
    Compression::parse(text).map_err(|e| e.to_string())
}

/// RFC 3339, kept in UTC.
pub fn parse_time(text: &str) -> Result<String, String> {
    text.parse::<jiff::Timestamp>()
        .map(|time| time.to_string())
        .map_err(|e| format!("{text:?} is not an RFC 3339 time like 2026-11-24T05:44:00Z: {e}"))
}

/// `POINT` or `POINT/VOLUME`.
pub fn split_point_volume(text: &str) -> (&str, Option<&str>) {
    match text.split_once('/') {
        Some((point, volume)) => (point, Some(volume)),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tags_and_times() {
        assert_eq!(parse_name("web-01").as_deref(), Ok("web-01"));
        assert!(parse_name("").is_err() && parse_name("a/b").is_err() && parse_name("a\nb").is_err());
        assert_eq!(parse_tag("env=a=b"), Ok(("env".into(), "a=b".into())));
        assert_eq!(parse_tag("empty="), Ok(("empty".into(), String::new())));
        assert!(parse_tag("env").is_err() && parse_tag("=x").is_err());
        assert_eq!(parse_time("2026-11-24T06:44:00+01:00").as_deref(), Ok("2026-11-24T05:44:00Z"));
        assert!(parse_time("2026-11-24").is_err());
    }

    #[test]
    fn a_volume_stands_after_the_slash() {
        assert_eq!(split_point_volume("latest"), ("latest", None));
        assert_eq!(split_point_volume("latest:web-01/vda"), ("latest:web-01", Some("vda")));
    }
}
