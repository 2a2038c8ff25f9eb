//! What happens to the demo's disk between the two backups.

use serde::Serialize;

use super::super::exit::Failure;
use super::files::{LOG, Random, Staged, log_lines};

/// One change of a file; paths are within the image, without a leading slash.
pub enum Change {
    /// The file goes.
    Remove {
        /// Which.
        path: String,
    },
    /// The file comes, or is written anew.
    Write {
        /// Which.
        path: String,
        /// All of it.
        contents: Vec<u8>,
    },
    /// The file grows at its end.
    Append {
        /// Which.
        path: String,
        /// As it is afterwards.
        whole: Vec<u8>,
        /// How much of that is new.
        added_bytes: usize,
    },
}

/// Their sum.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Changes {
    /// Growth of the log.
    pub appended_bytes: u64,
    /// New files.
    pub added_files: u64,
    /// Their bytes.
    pub added_bytes: u64,
    /// Files changed in place.
    pub modified_files: u64,
    /// Their bytes, changed or not.
    pub modified_bytes: u64,
    /// Files removed.
    pub removed_files: u64,
}

/// A day of changes, about a hundredth of the disk's files.
pub fn plan(staged: &Staged, files_bytes: u64) -> Result<(Vec<Change>, Changes), Failure> {
    const UPLOADS: u64 = 4;
    if staged.samples.len() < 2 {
        return Err(Failure::Failed("the demo found no files to change".into()));
    }
    let mut list = Vec::new();
    let mut changes = Changes::default();
    let added = log_lines(1, files_bytes / 256);
    changes.appended_bytes = added.len() as u64;
    let whole = [staged.log.as_slice(), &added].concat();
    list.push(Change::Append { path: LOG.into(), whole, added_bytes: added.len() });
    let upload_bytes = (files_bytes / 128 / UPLOADS) as usize;
    for number in 1..=UPLOADS {
        list.push(Change::Write {
            path: format!("srv/uploads/photo-{number}.jpg"),
            contents: Random(number).bytes(upload_bytes),
        });
        changes.added_files += 1;
        changes.added_bytes += upload_bytes as u64;
    }
    for (i, sample) in staged.samples.iter().enumerate() {
        if i % 2 == 0 {
            let mut contents = sample.contents.clone();
            let middle = contents.len() / 2;
            let patch = Random(i as u64).bytes(64.min(contents.len() - middle));
            contents[middle..middle + patch.len()].copy_from_slice(&patch);
            changes.modified_files += 1;
            changes.modified_bytes += contents.len() as u64;
            list.push(Change::Write { path: sample.path.clone(), contents });
        } else {
            changes.removed_files += 1;
            list.push(Change::Remove { path: sample.path.clone() });
        }
    }
    Ok((list, changes))
}

#[cfg(test)]
mod tests {
    use super::super::files::Sample;
    use super::*;

    #[test]
    fn a_day_changes_little_and_the_same_each_time() {
        let sample = |i: usize| Sample { path: format!("usr/f{i}"), contents: vec![i as u8; 5000] };
        let staged = Staged {
            files: 9,
            bytes: 0,
            entries: 9,
            samples: (0..9).map(sample).collect(),
            log: vec![b'x'; 100],
        };
        let (list, changes) = plan(&staged, 64 << 20).unwrap();
        assert_eq!((changes.added_files, changes.modified_files, changes.removed_files), (4, 5, 4));
        assert!(changes.appended_bytes + changes.added_bytes < 1 << 20);
        for change in &list {
            match change {
                Change::Append { whole, added_bytes, .. } => assert_eq!(whole.len(), 100 + added_bytes),
                Change::Write { path, contents } if path == "usr/f0" => {
                    assert_eq!(contents.len(), 5000);
                    assert!(*contents != staged.samples[0].contents);
                }
                _ => {}
            }
        }
        let none = Staged { samples: vec![], ..staged };
        assert!(plan(&none, 64 << 20).is_err());
    }
}
