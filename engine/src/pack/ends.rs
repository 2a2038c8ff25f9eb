//! The ends of a pack, header, trailer and table of contents, against what the index says of it.

use super::reader::read_contents;
use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::format::index_segment::PackRef;
use crate::format::pack::TocRow;
use crate::store::{Span, Store};

/// What the ends of a pack tell.
pub enum Ends {
    /// It is there, as long as it should be, and says of itself what the index says. These are its frames.
    Sound(Vec<TocRow>),
    /// It is in an archive class, there, and as long as it should be; that is all that can be known.
    Archived,
    /// It is damaged or lost.
    Hurt {
        /// What is wrong.
        error: Error,
        /// Bytes that are there; `None` if it is gone.
        bytes: Option<u64>,
        /// Its frames, if they can be known from itself.
        rows: Option<Vec<TocRow>>,
    },
}

/// Looks at the ends of a pack. Nothing is thawed for a look.
pub fn check_ends(store: &dyn Store, keys: &RepoKeys, pack: &PackRef) -> Result<Ends> {
    let key = pack.kind.key(&pack.id.to_string());
    let wrong_length =
        |bytes: u64| Error::damaged(&key, format_args!("{bytes} bytes long, {} in the index", pack.bytes));
    let length = || store.get(&key, Span::At { offset: 0, len: 0 }, &mut Vec::new());
    match read_contents(store, keys, pack.kind, pack.id) {
        Ok((found, rows)) if found == *pack => Ok(Ends::Sound(rows)),
        Ok((found, rows)) => {
            let error = match found.bytes == pack.bytes {
                true => Error::damaged(&key, "it is not the pack that the index means: its salt differs"),
                false => wrong_length(found.bytes.into()),
            };
            // With another salt its frames do not open by what the index says.
            let rows = (found.salt == pack.salt).then_some(rows);
            Ok(Ends::Hurt { error, bytes: Some(found.bytes.into()), rows })
        }
        Err(Error::Archived { .. }) => match length()? {
            Some(bytes) if bytes == u64::from(pack.bytes) => Ok(Ends::Archived),
            bytes => Ok(Ends::Hurt { error: wrong_length(bytes.unwrap_or(0)), bytes, rows: None }),
        },
        Err(error) if error.is_damage() || matches!(error, Error::NewerVersion { .. }) => {
            Ok(Ends::Hurt { bytes: length()?, error, rows: None })
        }
        Err(error) => Err(error),
    }
}
