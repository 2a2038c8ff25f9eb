//! `penstock init`: a new repository.

use std::sync::Arc;

use clap::ValueEnum;
use penstock_engine::Error;
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::format::config::{Config, Encryption};
use penstock_engine::repo::{InitOptions, Repository};
use penstock_engine::store::Store;
use serde::Serialize;

use super::access::{self, Purpose};
use super::exit::{Exit, Failure, Outcome};
use super::output::{self, Facts};
use super::session::Session;
use super::{args, host, units};

const EXAMPLES: &str = "\
Examples:
  penstock init --repo /backup/repo                                  asks for a passphrase
  penstock init --repo /backup/repo --password-file /etc/penstock.pass
  head -c 64 /dev/urandom > /etc/penstock.key; chmod 600 /etc/penstock.key
  penstock init --repo /backup/repo --key-file /etc/penstock.key
  penstock init --repo /backup/repo --chunk-size 128KiB --compression 3";

/// Create a repository
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Average chunk, the unit of deduplication: a power of two from 16KiB to 1MiB [default: 64KiB]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size_u32)]
    chunk_size: Option<u32>,

    /// How data is cut [default: block]
    #[arg(long, value_enum)]
    chunker: Option<Chunker>,

    /// auto, off or a zstd level from -7 to 19 [default: auto]
    #[arg(long, value_name = "LEVEL", value_parser = parse_compression, allow_hyphen_values = true)]
    pub compression: Option<String>,

    /// What a pack aims at: 8MiB to 128MiB [default: 32MiB]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size_u32)]
    pack_size: Option<u32>,

    /// Store everything readable by whoever can read the repository
    #[arg(long)]
    insecure_no_encryption: bool,
}

/// `--chunker`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Chunker {
    /// At 4 KiB blocks: for disks
    Block,
    /// At any byte: for streams whose contents shift
    Fastcdc,
}

fn parse_compression(text: &str) -> Result<String, String> {
    args::parse_compression(text).map(|_| text.to_owned())
}

/// The result of `init --json`.
#[derive(Serialize)]
struct Report<'a> {
    repository_id: &'a str,
    location: &'a str,
    format_version: u16,
    encryption: Encryption,
    chunker: &'a str,
    chunk_bytes: u32,
    pack_bytes: u32,
    compression: &'a str,
    created_at: &'a str,
}

/// Creates the repository and says how it was set up.
pub fn run(args: &Args, session: &Session) -> Outcome {
    let existing = match session.open_store(false, false) {
        // What is no place for a repository is told before a passphrase is asked for.
        Err(failure) if !matches!(failure, Failure::Engine(Error::NotARepository { .. })) => {
            return Err(failure);
        }
        existing => existing,
    };
    refuse_existing(existing.as_ref())?;
    let globals = &session.globals;
    let access = if !args.insecure_no_encryption {
        access::access_key(globals, &session.interrupt, Purpose::Create)?
    } else if globals.password_file.is_some() || globals.key_file.is_some() {
        return Err(Failure::usage("--insecure-no-encryption takes no --password-file or --key-file"));
    } else {
        AccessKey::None
    };
    let repo = Repository::init(store_for(session, existing)?, &options(args), &access)?;
    if globals.json {
        output::print_json(&report(repo.config(), repo.location()))?;
    } else {
        output::print(&text(repo.config(), repo.location()))?;
        output::print(warning(&access))?;
    }
    Ok(Exit::Done)
}

/// Says so before a passphrase is asked for. What else may be there is `Repository::init`'s to judge.
fn refuse_existing(store: Result<&Arc<dyn Store>, &Failure>) -> Result<(), Failure> {
    let Ok(store) = store else { return Ok(()) };
    match Repository::needs_key(&**store) {
        Ok(_) => {
            Err(Error::AlreadyExists { location: store.location().to_owned(), what: "a repository".into() }
                .into())
        }
        // What a bucket refuses now, it refuses later too.
        Err(error @ Error::Remote { .. }) => Err(error.into()),
        Err(_) => Ok(()),
    }
}

/// An object store is there already; a directory may have to be made.
fn store_for(
    session: &Session,
    existing: Result<Arc<dyn Store>, Failure>,
) -> Result<Arc<dyn Store>, Failure> {
    match existing {
        Ok(store) => Ok(store),
        Err(_) => session.open_store(true, false),
    }
}

fn options(args: &Args) -> InitOptions {
    let mut options = InitOptions { program: host::PROGRAM.into(), ..InitOptions::default() };
    options.encryption = if args.insecure_no_encryption { Encryption::None } else { Encryption::Aes256Gcm };
    if let Some(chunker) = args.chunker {
        options.chunker = match chunker {
            Chunker::Block => "block".into(),
            Chunker::Fastcdc => "fastcdc".into(),
        };
    }
    options.chunk_bytes = args.chunk_size.unwrap_or(options.chunk_bytes);
    options.pack_bytes = args.pack_size.unwrap_or(options.pack_bytes);
    if let Some(compression) = &args.compression {
        options.compression.clone_from(compression);
    }
    options
}

fn report<'a>(config: &'a Config, location: &'a str) -> Report<'a> {
    Report {
        repository_id: &config.repository_id,
        location,
        format_version: penstock_engine::format::VERSION,
        encryption: config.encryption,
        chunker: &config.chunker,
        chunk_bytes: config.chunk_bytes,
        pack_bytes: config.pack_bytes,
        compression: &config.compression,
        created_at: &config.created_at,
    }
}

/// `AES-256-GCM`, or what its absence means.
pub fn encryption_text(encryption: Encryption) -> &'static str {
    match encryption {
        Encryption::Aes256Gcm => "AES-256-GCM",
        Encryption::None => "none: damage is detected, nothing is hidden",
    }
}

fn text(config: &Config, location: &str) -> String {
    let mut facts = Facts::default();
    facts.add("id", &config.repository_id);
    facts.add("encryption", encryption_text(config.encryption));
    facts.add("chunks", format!("{}, {} on average", config.chunker, units::size(config.chunk_bytes.into())));
    facts.add("packs", units::size(config.pack_bytes.into()));
    facts.add("compression", &config.compression);
    format!("new repository at {location}\n{}", facts.text())
}

fn warning(access: &AccessKey) -> &'static str {
    match access {
        AccessKey::Passphrase(_) => {
            "Keep the passphrase in a safe place, away from this machine: without it nothing in the repository can \
             be read again, by anyone.\n"
        }
        AccessKey::KeyFile(_) => {
            "Keep a copy of the key file in a safe place, away from this machine: without it nothing in the \
             repository can be read again, by anyone.\n"
        }
        AccessKey::None => "Whoever can read the repository can read every disk in it.\n",
    }
}
