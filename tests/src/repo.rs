//! A repository as a user has it: a place, a key, a state directory on this machine.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::penstock::Penstock;
use crate::workdir::{Workdir, text};
use crate::{json, servers, tools};

/// How a repository is opened.
#[derive(Clone, Debug)]
pub enum Access {
    /// A key file: no slow key derivation, so most tests use it.
    KeyFile(PathBuf),
    /// A passphrase, given by environment.
    Password(String),
    /// `--insecure-no-encryption`.
    Open,
}

/// A repository. It owns nothing: the [`Workdir`] does.
#[derive(Clone, Debug)]
pub struct Repo {
    /// Where its objects are.
    pub dir: PathBuf,
    /// `PENSTOCK_STATE_DIR` of every command.
    pub state: PathBuf,
    /// How it is opened.
    pub access: Access,
    /// Environment of every command, besides that.
    pub env: Vec<(String, String)>,
}

impl Repo {
    /// A repository `name` in `work`, encrypted with a key file.
    pub fn encrypted(work: &Workdir, name: &str, init_args: &[&str]) -> Self {
        let key = work.join(&format!("{name}.key"));
        let mut bytes = [0u8; 64];
        blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
        std::fs::write(&key, bytes).unwrap();
        Self::init(work, name, Access::KeyFile(key), init_args)
    }

    /// A repository without encryption.
    pub fn open(work: &Workdir, name: &str, init_args: &[&str]) -> Self {
        Self::init(work, name, Access::Open, init_args)
    }

    /// A repository opened by `access`.
    pub fn init(work: &Workdir, name: &str, access: Access, init_args: &[&str]) -> Self {
        let repo = Self::at(&work.join(name), &work.join(&format!("{name}.state")), access);
        let mut command = repo.command(&["init"]);
        if matches!(repo.access, Access::Open) {
            command = command.arg("--insecure-no-encryption");
        }
        command.args(init_args).run().ok();
        repo
    }

    /// A repository that is, or will be, at `dir`.
    pub fn at(dir: &Path, state: &Path, access: Access) -> Self {
        Self { dir: dir.to_owned(), state: state.to_owned(), access, env: Vec::new() }
    }

    /// A new repository in the test bucket of a server that speaks S3.
    pub fn on_s3(work: &Workdir, name: &str, endpoint: &str, init_args: &[&str]) -> Self {
        let repo = Self::in_cloud(work, name, "s3").reaching_s3(endpoint);
        repo.command(&["init"]).args(init_args).run().ok();
        repo
    }

    /// With what it takes to reach a server that speaks S3. Its patience is that of tests.
    pub fn reaching_s3(self, endpoint: &str) -> Self {
        self.with_env(&[
            ("AWS_ACCESS_KEY_ID", servers::KEY_ID),
            ("AWS_SECRET_ACCESS_KEY", servers::SECRET),
            ("AWS_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("PENSTOCK_S3_ENDPOINT", endpoint),
            ("PENSTOCK_S3_TIMEOUT", "4"),
            ("PENSTOCK_S3_PATIENCE", "40"),
        ])
    }

    /// What will be a repository in the test bucket of a service.
    pub fn in_cloud(work: &Workdir, name: &str, scheme: &str) -> Self {
        Self::in_bucket(work, name, scheme, servers::BUCKET)
    }

    /// What will be a repository in a bucket.
    pub fn in_bucket(work: &Workdir, name: &str, scheme: &str, bucket: &str) -> Self {
        let url = format!("{scheme}://{bucket}/{name}");
        let key = work.join(&format!("{name}.key"));
        std::fs::write(&key, [name.len() as u8 + 1; 64]).unwrap();
        Self::at(Path::new(&url), &work.join(&format!("{name}.state")), Access::KeyFile(key))
    }

    /// Adds to the environment of commands; later values win.
    pub fn with_env(mut self, env: &[(&str, &str)]) -> Self {
        self.env.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self
    }

    /// The same repository, with another state directory: as from another machine.
    pub fn elsewhere(&self, work: &Workdir, state: &str) -> Self {
        Self { state: work.join(state), ..self.clone() }
    }

    /// A copy of the objects under another name, with an empty state directory; opened by the same key.
    pub fn copy(&self, work: &Workdir, name: &str) -> Self {
        let dir = work.join(name);
        tools::run("cp", &["-r", "--reflink=auto", text(&self.dir), text(&dir)]);
        Self::at(&dir, &work.join(&format!("{name}.state")), self.access.clone())
    }

    /// Removes the objects and the state: for tests that make many repositories.
    pub fn remove(self) {
        std::fs::remove_dir_all(&self.dir).unwrap();
        if self.state.exists() {
            std::fs::remove_dir_all(&self.state).unwrap();
        }
    }

    /// A command on this repository.
    pub fn command(&self, args: &[&str]) -> Penstock {
        let command = Penstock::new(&self.state).env("PENSTOCK_REPO", &self.dir).args(args);
        let command = self.env.iter().fold(command, |command, (name, value)| command.env(name, value));
        match &self.access {
            Access::KeyFile(path) => command.arg("--key-file").arg(path),
            Access::Password(password) => command.env("PENSTOCK_PASSWORD", password),
            Access::Open => command,
        }
    }

    /// The command of `backup --json`.
    pub fn backup_command(&self, source: &Path, name: &str, args: &[&str]) -> Penstock {
        self.command(&["backup", text(source), "--name", name, "--json"]).args(args)
    }

    /// `backup --json` that succeeds.
    #[track_caller]
    pub fn backup(&self, source: &Path, name: &str, args: &[&str]) -> Value {
        self.backup_command(source, name, args).run().ok().json()
    }

    /// As [`Repo::backup`]; only the id of the recovery point.
    #[track_caller]
    pub fn backup_id(&self, source: &Path, name: &str) -> String {
        json::text(&self.backup(source, name, &[]), "recovery_point").to_owned()
    }

    /// The command of `restore --json`.
    pub fn restore_command(&self, point: &str, target: &Path, args: &[&str]) -> Penstock {
        self.command(&["restore", point, text(target), "--json"]).args(args)
    }

    /// `restore --json` that succeeds.
    #[track_caller]
    pub fn restore(&self, point: &str, target: &Path, args: &[&str]) -> Value {
        self.restore_command(point, target, args).run().ok().json()
    }

    /// `show --json`.
    #[track_caller]
    pub fn show(&self, point: &str) -> Value {
        self.command(&["show", point, "--json"]).run().ok().json()
    }

    /// The manifest root of a volume: equal roots are equal contents (within a repository).
    #[track_caller]
    pub fn root(&self, point: &str, volume: usize) -> Value {
        let point = self.show(point);
        let root = &json::list(&point, "volumes")[volume]["root"];
        assert!(!root.is_null(), "no root in {point:#}");
        root.clone()
    }

    /// The manifest roots of all volumes of the recovery point that a `backup --json` answer speaks of.
    pub fn roots(&self, backup: &Value) -> Vec<Value> {
        let point = self.show(json::text(backup, "recovery_point"));
        json::list(&point, "volumes").iter().map(|v| v["root"].clone()).collect()
    }

    /// Ids of all recovery points that `list --json` names, oldest first.
    #[track_caller]
    pub fn point_ids(&self) -> Vec<String> {
        ids_in(&self.command(&["list", "--json"]).run().ok().json())
    }

    /// Everything is verified and well.
    #[track_caller]
    pub fn verify_is_clean(&self) {
        self.command(&["verify", "--read-data", "--json"]).run().ok();
    }

    /// Files in `tmp/`: there are none unless a process was killed.
    pub fn temporary_files(&self) -> Vec<PathBuf> {
        crate::workdir::files_under(&self.dir.join("tmp"))
    }
}

/// The ids in the answer of `list --json`: a list of points, or an object with such a list.
#[track_caller]
pub fn ids_in(answer: &Value) -> Vec<String> {
    let points = ["recovery_points", "points"].iter().find_map(|key| answer.get(key)).unwrap_or(answer);
    let points = points.as_array().unwrap_or_else(|| panic!("no list of recovery points in {answer:#}"));
    let id = |point: &Value| {
        let id = point.get("id").or_else(|| point.get("recovery_point")).and_then(Value::as_str);
        id.unwrap_or_else(|| panic!("no id in {point:#}")).to_owned()
    };
    points.iter().map(id).collect()
}
