//! Whether a source changed while it was read.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;

/// What a second look found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing moved.
    Same,
    /// Its contents changed; the words say what showed it.
    Changed(String),
    /// Something was done to it that may have changed its contents, and need not have.
    Touched(String),
}

/// What tells after the last read whether a source is still what it was before the first.
pub struct Watch {
    /// For messages.
    pub source_name: String,
    /// The user accepts a copy that is torn.
    pub accepted: bool,
    look: Box<dyn Fn() -> Seen + Send>,
}

impl Watch {
    /// `look` compares with what was found when the watch was made.
    pub fn new(source_name: &str, accepted: bool, look: impl Fn() -> Seen + Send + 'static) -> Self {
        Self { source_name: source_name.to_owned(), accepted, look: Box::new(look) }
    }

    /// Looks again.
    pub fn look(&self) -> Seen {
        (self.look)()
    }
}

/// Size and times of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileState {
    size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileState {
    /// Of an open file.
    pub fn of(meta: &Metadata) -> Self {
        Self {
            size_bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Compares with the file as it is now.
    pub fn look(&self, file: &File) -> Seen {
        match file.metadata() {
            Ok(meta) => self.compare(&Self::of(&meta)),
            Err(error) => Seen::Touched(format!("it cannot be looked at any more: {error}")),
        }
    }

    fn compare(&self, now: &Self) -> Seen {
        if self.size_bytes != now.size_bytes {
            return Seen::Changed(format!("it had {} bytes and has {}", self.size_bytes, now.size_bytes));
        }
        if self.modified != now.modified {
            return Seen::Changed("its time of modification moved".into());
        }
        if self.changed != now.changed {
            return Seen::Touched(
                "its time of change moved, but not that of modification: it was renamed, linked or given \
                 other attributes, or it was written and its time set back"
                    .into(),
            );
        }
        Seen::Same
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_and_attributes_are_told_apart() {
        let state = FileState { size_bytes: 4096, modified: (5, 1), changed: (5, 1) };
        assert_eq!(state.compare(&state.clone()), Seen::Same);
        let grown = FileState { size_bytes: 8192, ..state.clone() };
        assert!(matches!(state.compare(&grown), Seen::Changed(what) if what.contains("8192")));
        let written = FileState { modified: (5, 2), changed: (5, 2), ..state.clone() };
        assert!(matches!(state.compare(&written), Seen::Changed(_)));
        let linked = FileState { changed: (6, 0), ..state.clone() };
        assert!(matches!(state.compare(&linked), Seen::Touched(_)));
    }
}
