//! A directory for one test, on a real disk, removed at the end.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

const TMPFS_MAGIC: u64 = 0x0102_1994;

/// The directory. `PENSTOCK_TEST_DIR` says under which directory it is made (default `/var/tmp`); `PENSTOCK_TEST_KEEP=1` keeps it.
#[derive(Debug)]
pub struct Workdir {
    // an Option only so that Drop can let go of it
    dir: Option<TempDir>,
    path: PathBuf,
}

impl Workdir {
    /// Makes the directory `penstock-test-<label>-…`.
    ///
    /// # Panics
    /// If it would be on tmpfs: that has no O_DIRECT, and images of a GiB do not belong in memory.
    pub fn new(label: &str) -> Self {
        let parent =
            std::env::var_os("PENSTOCK_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        std::fs::create_dir_all(&parent)
            .unwrap_or_else(|e| panic!("cannot create {}: {e}", parent.display()));
        let stat = rustix::fs::statfs(&parent).unwrap();
        assert!(
            stat.f_type as u64 != TMPFS_MAGIC,
            "{} is on tmpfs: set PENSTOCK_TEST_DIR to a directory on a disk",
            parent.display()
        );
        let dir =
            tempfile::Builder::new().prefix(&format!("penstock-test-{label}-")).tempdir_in(&parent).unwrap();
        let path = dir.path().to_owned();
        Self { dir: Some(dir), path }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A name in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        if std::env::var_os("PENSTOCK_TEST_KEEP").is_some_and(|value| value == "1") {
            eprintln!("kept {}", dir.keep().display());
        }
    }
}

/// `path` as text, for argument lists; the tests use no other than UTF-8 paths.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_else(|| panic!("{} is not UTF-8", path.display()))
}

/// Removes a file that may not be there.
pub fn remove_if_there(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        assert!(error.kind() == std::io::ErrorKind::NotFound, "cannot remove {}: {error}", path.display());
    }
}

/// All files under `dir`, sorted, relative to it.
pub fn files_under(dir: &Path) -> Vec<PathBuf> {
    fn walk(dir: &Path, top: &Path, found: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(dir) else { return };
        for entry in entries.map(Result::unwrap) {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                walk(&path, top, found);
            } else {
                found.push(path.strip_prefix(top).unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(dir, dir, &mut found);
    found.sort();
    found
}

/// Sum of the sizes of all files under `dir`.
pub fn bytes_under(dir: &Path) -> u64 {
    files_under(dir).iter().map(|file| std::fs::metadata(dir.join(file)).unwrap().len()).sum()
}
