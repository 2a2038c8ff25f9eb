//! Where the key of a repository comes from. Secrets are wiped when dropped and never shown.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use penstock_engine::Error;
use penstock_engine::crypto::wrap::AccessKey;
use zeroize::Zeroizing;

use super::args::Globals;
use super::exit::Failure;
use super::interrupt::Interrupt;

/// A passphrase or key file is small; anything larger is some other file.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// What a prompt is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Open a repository.
    Open,
    /// Start one: a prompted passphrase is asked for twice.
    Create,
    /// Open the destination of a copy, which has options and variables of its own.
    OpenDestination,
}

impl Purpose {
    /// The environment variable that is to this purpose what `name` (`PENSTOCK_…`) is to others.
    fn variable(self, name: &str) -> String {
        match self {
            Self::Open | Self::Create => name.to_owned(),
            Self::OpenDestination => name.replacen("PENSTOCK_", "PENSTOCK_TO_", 1),
        }
    }
}

/// The first of: `--key-file`, `--password-file`, `PENSTOCK_PASSWORD_FILE`, `PENSTOCK_PASSWORD`, a prompt.
pub fn access_key(globals: &Globals, interrupt: &Interrupt, purpose: Purpose) -> Result<AccessKey, Failure> {
    let set = |name: &str| std::env::var_os(purpose.variable(name)).filter(|value| !value.is_empty());
    match from_options(globals, set)? {
        Some(key) => Ok(key),
        None => {
            // Ctrl-C at the prompt must first give the terminal its echo back, which ending at once would not.
            let hold = interrupt.hold();
            let key = prompt(purpose);
            if key.as_ref().is_err_and(Failure::is_cancelled) {
                // The signal may reach its thread only later; it has been seen to here.
                std::mem::forget(hold);
            }
            interrupt.check().and(key)
        }
    }
}

/// True if the command line or the environment names a key.
pub fn is_given(globals: &Globals, purpose: Purpose) -> bool {
    let set = |name: &str| std::env::var_os(purpose.variable(name)).is_some_and(|value| !value.is_empty());
    globals.key_file.is_some()
        || globals.password_file.is_some()
        || set("PENSTOCK_PASSWORD_FILE")
        || set("PENSTOCK_PASSWORD")
}

fn from_options(
    globals: &Globals,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<AccessKey>, Failure> {
    if let Some(path) = &globals.key_file {
        let mut contents = read_secret(path)?;
        return Ok(Some(AccessKey::key_file(std::mem::take(&mut *contents))?));
    }
    let file =
        globals.password_file.clone().or_else(|| environment("PENSTOCK_PASSWORD_FILE").map(PathBuf::from));
    if let Some(path) = file {
        return passphrase(&read_secret(&path)?, &format!("{} is empty", path.display())).map(Some);
    }
    match environment("PENSTOCK_PASSWORD") {
        Some(value) => passphrase(&Zeroizing::new(value.into_vec()), "PENSTOCK_PASSWORD is empty").map(Some),
        None => Ok(None),
    }
}

fn passphrase(text: &[u8], empty: &str) -> Result<AccessKey, Failure> {
    match strip_newline(text) {
        [] => Err(Failure::usage(format!("{empty}: a passphrase needs at least one character"))),
        text => Ok(AccessKey::passphrase(text)),
    }
}

/// Editors and `echo` end a file with a newline that is no part of the passphrase.
fn strip_newline(text: &[u8]) -> &[u8] {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    text.strip_suffix(b"\r").unwrap_or(text)
}

fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let file = fs::File::open(path).map_err(Failure::io("open", path.display()))?;
    // Reserved at once: a vector that grows leaves copies behind which nobody wipes.
    let mut contents = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX as usize + 1));
    file.take(SECRET_BYTES_MAX + 1)
        .read_to_end(&mut contents)
        .map_err(Failure::io("read", path.display()))?;
    if contents.len() as u64 > SECRET_BYTES_MAX {
        return Err(Failure::usage(format!(
            "{} is larger than {SECRET_BYTES_MAX} bytes: that is no passphrase or key file",
            path.display()
        )));
    }
    Ok(contents)
}

fn prompt(purpose: Purpose) -> Result<AccessKey, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let (what, to) = match purpose {
            Purpose::Open => ("the repository is encrypted", ""),
            Purpose::Create => ("the new repository will be encrypted", ""),
            Purpose::OpenDestination => ("the destination is encrypted", "to-"),
        };
        let [file, passphrase] =
            ["PENSTOCK_PASSWORD_FILE", "PENSTOCK_PASSWORD"].map(|name| purpose.variable(name));
        return Err(Failure::usage(format!(
            "{what}: name its passphrase by --{to}password-file FILE, {file} or {passphrase}, \
             or its key by --{to}key-file FILE (there is no terminal to ask on)"
        )));
    }
    let ask = |text: &str| {
        rpassword::prompt_password(text).map(Zeroizing::new).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => Error::Cancelled.into(),
            _ => Failure::io("read", "the passphrase from the terminal")(error),
        })
    };
    let first = ask(match purpose {
        Purpose::Open => "Passphrase: ",
        Purpose::Create => "Passphrase of the new repository: ",
        Purpose::OpenDestination => "Passphrase of the destination: ",
    })?;
    if purpose == Purpose::Create && *first != *ask("Once more: ")? {
        return Err(Failure::usage("the two passphrases differ: nothing was created"));
    }
    passphrase(first.as_bytes(), "nothing was typed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(key: Option<AccessKey>) -> Vec<u8> {
        match key {
            Some(AccessKey::Passphrase(text)) | Some(AccessKey::KeyFile(text)) => text.to_vec(),
            _ => panic!("no key"),
        }
    }

    #[test]
    fn options_come_before_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, contents: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, contents).unwrap();
            path
        };
        let (option, variable, key) = (write("a", b"one\n\n"), write("b", b"two\r\n"), write("k", &[7; 33]));
        let environment = |name: &str| match name {
            "PENSTOCK_PASSWORD_FILE" => Some(variable.clone().into_os_string()),
            _ => Some("three".into()),
        };
        let both = Globals { password_file: Some(option), ..Globals::default() };
        assert_eq!(bytes_of(from_options(&both, environment).unwrap()), b"one\n", "one newline is dropped");
        let none = Globals::default();
        assert_eq!(bytes_of(from_options(&none, environment).unwrap()), b"two");
        let only_password = |name: &str| (name == "PENSTOCK_PASSWORD").then(|| "three".into());
        assert_eq!(bytes_of(from_options(&none, only_password).unwrap()), b"three");
        assert!(from_options(&none, |_| None).unwrap().is_none());
        let key = Globals { key_file: Some(key), ..Globals::default() };
        assert_eq!(bytes_of(from_options(&key, environment).unwrap()), [7; 33]);
    }

    #[test]
    fn the_destination_has_variables_of_its_own() {
        assert_eq!(Purpose::Open.variable("PENSTOCK_PASSWORD"), "PENSTOCK_PASSWORD");
        assert_eq!(Purpose::OpenDestination.variable("PENSTOCK_PASSWORD_FILE"), "PENSTOCK_TO_PASSWORD_FILE");
    }

    #[test]
    fn unusable_secrets_are_refused_without_being_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let with = |contents: &[u8]| {
            fs::write(&path, contents).unwrap();
            let globals = Globals { password_file: Some(path.clone()), ..Globals::default() };
            from_options(&globals, |_| None).unwrap_err().to_string()
        };
        assert!(with(b"\n").contains("is empty"));
        let large = with(&[b's'; 70_000]);
        assert!(large.contains("larger than") && !large.contains("sss"));
        let missing = Globals { password_file: Some(dir.path().join("none")), ..Globals::default() };
        assert!(from_options(&missing, |_| None).unwrap_err().to_string().contains("none"));
        fs::write(&path, [1; 5]).unwrap();
        let short = Globals { key_file: Some(path), ..Globals::default() };
        assert!(from_options(&short, |_| None).unwrap_err().to_string().contains("at least 32"));
    }
}
