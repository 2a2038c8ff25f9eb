//! Tags of everything that this program makes: by them a later run, or another machine, knows what it finds.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{Filter, ResourceType, Tag, TagSpecification};

/// The run that made it, 16 hex digits. Whatever has this tag is penstock's.
pub const RUN: &str = "penstock:run";
/// What it is for: [`TEMPORARY`], [`ANCHOR`], [`KEPT`].
pub const PURPOSE: &str = "penstock:purpose";
/// RFC 3339: after that a temporary thing is a leftover, even if nobody knows its run.
pub const EXPIRES: &str = "penstock:expires";
/// The volume a snapshot or temporary volume stands for.
pub const VOLUME: &str = "penstock:volume";
/// The recovery point whose contents an anchor has.
pub const POINT: &str = "penstock:point";
/// The repository of that point.
pub const REPOSITORY: &str = "penstock:repository";
/// The instance an image or snapshot is of.
pub const INSTANCE: &str = "penstock:instance";

/// What belongs together of what `ec2 snapshot` took.
pub const SET: &str = "penstock:set";
/// When that was, RFC 3339.
pub const TAKEN: &str = "penstock:taken";

/// Gone with the end of its run.
pub const TEMPORARY: &str = "temporary";
/// Kept to know what changes until the next backup.
pub const ANCHOR: &str = "anchor";
/// Kept by the user's wish: `ec2 snapshot`, and images of mode ami.
pub const KEPT: &str = "kept";

/// Restored: an instance or a volume, which is the user's from then on.
pub const RESTORED: &str = "restored";

/// Names with values.
pub type Tags = BTreeMap<String, String>;

/// Of something that AWS described.
pub fn of(tags: &[Tag]) -> Tags {
    tags.iter()
        .filter_map(|tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned())))
        .collect()
}

/// As calls take them.
pub fn list(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

/// For calls that make something of this kind.
pub fn specification(kind: ResourceType, tags: &Tags) -> TagSpecification {
    TagSpecification::builder().resource_type(kind).set_tags(Some(list(tags))).build()
}

/// Objects whose tag `key` is `value`.
pub fn filter(key: &str, value: &str) -> Filter {
    Filter::builder().name(format!("tag:{key}")).values(value).build()
}

/// Objects that have the tag at all.
pub fn with_key(key: &str) -> Filter {
    Filter::builder().name("tag-key").values(key).build()
}

/// What a run puts on everything.
#[derive(Clone, Debug)]
pub struct RunTags {
    /// The run's id.
    pub run: String,
    /// RFC 3339.
    pub expires: String,
}

impl RunTags {
    /// For something temporary that stands for a volume.
    pub fn temporary(&self) -> Tags {
        BTreeMap::from([
            (RUN.to_owned(), self.run.clone()),
            (PURPOSE.to_owned(), TEMPORARY.to_owned()),
            (EXPIRES.to_owned(), self.expires.clone()),
        ])
    }

    /// A token under which AWS makes `what` of this run once, however often it is asked.
    pub fn token(&self, what: &str) -> String {
        // 64 characters at most
        format!("penstock-{}-{what}", self.run)
    }
}
