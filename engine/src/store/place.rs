//! Where a repository is: the one parser of what people type behind `--repo`. What is no repository is refused with the
//! form to use, before anything is made: a backup that silently goes to a directory called `s3:bucket` protects
//! nothing.

use std::path::{Path, PathBuf};

use super::object;
use crate::error::{Error, Result};

/// A repository's place, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// `memory:`, for tests.
    Memory,
    /// A directory.
    Dir(PathBuf),
    /// A bucket and a prefix.
    Bucket(object::Place),
}

/// What is accepted, for messages.
const FORMS: &str = "a path, file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix";
/// Schemes of object stores, and what stands for them in other programs.
const BUCKETS: [(&str, &str); 10] = [
    ("s3", "s3"),
    ("s3a", "s3"),
    ("s3n", "s3"),
    ("gs", "gs"),
    ("gcs", "gs"),
    ("google", "gs"),
    ("az", "az"),
    ("azure", "az"),
    ("azblob", "az"),
    ("abfs", "az"),
];
/// Ends of host names whose first path component is a bucket.
const HOSTS: [&str; 5] = [
    ".amazonaws.com",
    ".amazonaws.com.cn",
    ".blob.core.windows.net",
    ".backblazeb2.com",
    "storage.googleapis.com",
];

impl Place {
    /// Reads what stands behind `--repo`. Errors are [`Error::Invalid`] and say what to write instead.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |why: String| Err(refused(text, &why));
        if text.is_empty() {
            return refuse(format!("it is empty. Write {FORMS}"));
        }
        if let Some(why) = wrong_characters(text) {
            return refuse(why);
        }
        if text == "memory:" {
            return Ok(Self::Memory);
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return Self::of_url(text, &scheme.to_ascii_lowercase(), rest);
        }
        // `./a:b` is a path; `a:b` is what a host, a drive or another program's URL looks like.
        let first = text.split('/').next().unwrap_or_default();
        if let Some((name, rest)) = first.split_once(':') {
            let rest = [rest, &text[first.len()..]].concat();
            return refuse(with_colon(text, &name.to_ascii_lowercase(), &rest));
        }
        if text[first.len()..].starts_with("//")
            && let Some(scheme) = bucket_scheme(&first.to_ascii_lowercase())
        {
            return refuse(format!("a colon is missing: write {scheme}:{}", &text[first.len()..]));
        }
        if text.starts_with('~') {
            return refuse("~ was not expanded by a shell. Write the whole path, or \"$HOME/…\"".into());
        }
        if text.starts_with('$') || text.starts_with('%') {
            return refuse("a variable was not expanded. Write the whole path".into());
        }
        if text.starts_with('\\') {
            return refuse(
                "a Windows path is no place for a repository. Mount the share, and give its path".into(),
            );
        }
        if text == "-" {
            return refuse(format!("a repository is no stream. Write {FORMS}"));
        }
        if is_host(first) {
            return refuse(
                "it looks like a host name. Write s3://bucket/prefix, and --s3-endpoint https://host".into(),
            );
        }
        Ok(Self::Dir(PathBuf::from(text)))
    }

    fn of_url(text: &str, scheme: &str, rest: &str) -> Result<Self> {
        if scheme == "file" {
            return file_url(text, rest);
        }
        if let Some(place) = object::Place::parse(&format!("{scheme}://{rest}"))? {
            if is_host(&place.bucket) {
                return Err(refused(
                    text,
                    &format!(
                        "{} is a host, not a bucket. Write {scheme}://bucket/prefix, and --s3-endpoint \
                         https://host for a service of your own",
                        place.bucket
                    ),
                ));
            }
            return Ok(Self::Bucket(place));
        }
        let advice = match scheme {
            _ if scheme.starts_with("s3:") => {
                format!("Write s3://bucket/prefix, and --s3-endpoint {}://host", &scheme[3..])
            }
            "http" | "https" if is_host(rest.split(['/', ':', '?']).next().unwrap_or_default()) => {
                "Write s3://bucket/prefix, and --s3-endpoint https://host for a service of your own"
                    .to_owned()
            }
            "sftp" | "ssh" | "nfs" | "smb" | "cifs" | "ftp" => {
                format!(
                    "{scheme} is not spoken here: mount it, and give the path. A repository is at {FORMS}"
                )
            }
            scheme => match bucket_scheme(scheme) {
                Some(known) => format!("Write {known}://{}", without_host(rest)),
                None => format!("A repository is at {FORMS}"),
            },
        };
        Err(refused(text, &format!("there is no {scheme}://. {advice}")))
    }

    /// The directory, if it is one.
    pub fn dir(&self) -> Option<&Path> {
        match self {
            Self::Dir(dir) => Some(dir),
            Self::Memory | Self::Bucket(_) => None,
        }
    }
}

/// `file:///path`, and nothing else that RFC 8089 knows: programs differ in what the other forms and escapes mean.
fn file_url(text: &str, rest: &str) -> Result<Place> {
    let Some(path) = rest.strip_prefix('/').map(|_| rest) else {
        let path = rest.split_once('/').map_or("path", |(_, path)| path);
        return Err(refused(text, &format!("a host has no place in it. Write file:///{path}, or /{path}")));
    };
    let escaped =
        path.as_bytes().windows(3).any(|w| w[0] == b'%' && w[1..].iter().all(u8::is_ascii_hexdigit));
    if escaped {
        return Err(refused(
            text,
            &format!("escapes as %20 are not read. Write the path as it is: '{}'", unescaped(path)),
        ));
    }
    Ok(Place::Dir(PathBuf::from(path)))
}

/// What cannot be meant, wherever it stands.
fn wrong_characters(text: &str) -> Option<String> {
    if text.chars().any(char::is_control) {
        return Some("it has a line break or another control character in it".into());
    }
    if text.trim() != text {
        return Some("it begins or ends with a blank".into());
    }
    if text.starts_with(['"', '\'']) {
        return Some(
            "it begins with a quotation mark: whoever set it (an env-file?) takes quotes literally".into(),
        );
    }
    None
}

/// What to write instead of `name:rest`.
fn with_colon(text: &str, name: &str, rest: &str) -> String {
    let path = || rest.trim_start_matches('/');
    match name {
        "file" if path().is_empty() => format!("write {FORMS}"),
        "file" => format!("write file:///{}, or /{0}", path()),
        "arn" => {
            let bucket = text.rsplit(':').next().unwrap_or_default();
            format!("an ARN is no URL. Write s3://{bucket}")
        }
        "b2" => "B2's own API is not spoken here. Write s3://bucket/prefix and --s3-endpoint \
                 https://s3.REGION.backblazeb2.com; `penstock init` tells whether the service can hold a repository"
            .into(),
        "swift" | "rclone" | "rest" => format!("{name}: is another program's. A repository is at {FORMS}"),
        "sftp" | "ssh" | "nfs" | "smb" => format!("{name} is not spoken here: mount it, and give the path. A repository is at {FORMS}"),
        _ if bucket_scheme(name).is_some() => {
            let scheme = bucket_scheme(name).unwrap_or_default();
            format!("write {scheme}://{}", without_host(&path().replacen(":/", "/", 1)))
        }
        _ if name.len() == 1 => "a Windows path is no place for a repository. A directory called so: write ./ before it".into(),
        _ if name.contains('@') || rest.starts_with('/') => {
            "that is a path on another host. Mount it, and give the path; or, for a directory called so, write ./ before".into()
        }
        _ => format!("there is no {name}:. A repository is at {FORMS}; a directory called so is ./{name}:…"),
    }
}

fn bucket_scheme(name: &str) -> Option<&'static str> {
    BUCKETS.iter().find(|(known, _)| *known == name).map(|(_, scheme)| *scheme)
}

fn is_host(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    HOSTS.iter().any(|end| name.ends_with(end)) || name == "amazonaws.com"
}

/// `s3.amazonaws.com/bucket/x` is `bucket/x` where the host is AWS's own.
fn without_host(rest: &str) -> String {
    match rest.split_once('/') {
        Some((host, rest)) if is_host(host) => rest.to_owned(),
        _ if rest.is_empty() => "bucket/prefix".into(),
        _ => rest.to_owned(),
    }
}

fn unescaped(path: &str) -> String {
    let bytes = path.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let hex = path.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The error; what may be a password in a URL is not shown.
fn refused(text: &str, why: &str) -> Error {
    let shown = match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        _ => text.to_owned(),
    };
    Error::Invalid { what: format!("--repo {shown:?}: {why}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_apart() {
        let dir = |text: &str| match Place::parse(text) {
            Ok(Place::Dir(dir)) => dir.display().to_string(),
            other => panic!("{text}: {other:?}"),
        };
        for path in
            ["/backup", "backup", "a/b", "./a:b", "a/b:c", "/a:b", "./s3:x", "./~x", "s3/b", "../x", "a%20b"]
        {
            assert_eq!(dir(path), path);
        }
        assert_eq!(dir("file:///backup/x"), "/backup/x");
        assert_eq!(dir("file:///a%b"), "/a%b");
        assert_eq!(Place::parse("memory:").unwrap(), Place::Memory);
        for bucket in ["s3://b/x", "S3://b/x", "s3a://b/x", "gs://b", "gcs://b", "az://c/p", "azure://c/p"] {
            assert!(matches!(Place::parse(bucket), Ok(Place::Bucket(_))), "{bucket}");
        }
    }

    #[test]
    fn what_is_none_is_refused_with_the_form_to_use() {
        for (text, says) in [
            ("", "s3://bucket/prefix"),
            ("s3:bucket/x", "write s3://bucket/x"),
            ("S3:b/x", "write s3://b/x"),
            ("s3:/b/x", "write s3://b/x"),
            ("s3//b/x", "write s3://b/x"),
            ("s3:s3.amazonaws.com/b/x", "write s3://b/x"),
            ("s3:s3.us-east-1.amazonaws.com/b/x", "write s3://b/x"),
            ("s3:https://host/b/x", "--s3-endpoint https://host"),
            ("s3://s3.amazonaws.com/b/x", "is a host"),
            ("https://s3.amazonaws.com/b/x", "--s3-endpoint"),
            ("s3.eu-west-1.amazonaws.com/b/x", "--s3-endpoint"),
            ("gs:bucket:/x", "write gs://bucket/x"),
            ("azure:c:/x", "write az://c/x"),
            ("arn:aws:s3:::bucket", "write s3://bucket"),
            ("b2:bucket", "s3://bucket/prefix"),
            ("sftp:host:/p", "mount it"),
            ("sftp://host/p", "mount it"),
            ("ssh://host/p", "mount it"),
            ("rclone:r:p", "s3://bucket/prefix"),
            ("user@host:/p", "mount it"),
            ("host:/p", "mount it"),
            ("rest:http://host/", "s3://bucket/prefix"),
            ("swift:c:/p", "s3://bucket/prefix"),
            ("file:/x", "file:///x"),
            ("file:x", "file:///x"),
            ("file:", "s3://bucket/prefix"),
            ("file://localhost/x", "file:///x"),
            ("file://x", "file:///"),
            ("file:///a%20b", "'/a b'"),
            ("~/repo", "not expanded"),
            ("~user/repo", "not expanded"),
            ("$HOME/repo", "not expanded"),
            ("C:\\backup", "Windows"),
            ("c:/backup", "Windows"),
            ("\\\\server\\share", "Windows"),
            ("\"/backup\"", "quotation"),
            ("'s3://b/x'", "quotation"),
            (" /backup", "blank"),
            ("/backup\n", "control character"),
            ("-", "s3://bucket/prefix"),
            ("s3://", "s3://bucket/prefix"),
            ("s3://b c/x", "s3://bucket/prefix"),
            ("foo://x", "there is no foo://"),
            ("a:b", "./"),
        ] {
            match Place::parse(text) {
                Err(Error::Invalid { what }) => {
                    assert!(what.to_lowercase().contains(&says.to_lowercase()), "{text:?}: {what}");
                }
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn passwords_in_urls_are_not_shown() {
        let error = Place::parse("ftp://me:SECRET@host/x").unwrap_err().to_string();
        assert!(!error.contains("SECRET") && error.contains("host/x"), "{error}");
    }
}
