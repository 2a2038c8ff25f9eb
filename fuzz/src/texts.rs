//! Bodies for text: what people type, what the kernel and AWS say.

use penstock_engine::Error;
use penstock_engine::format::config::Compression;
use penstock_engine::fuzzing;
use penstock_engine::retention::Within;
use penstock_engine::store::Place;

use super::{accepted, records};

/// The program's own module: it stands by itself.
#[allow(dead_code)]
#[path = "../../control/src/cli/units.rs"]
mod units;

/// The program's own module: it stands by itself.
#[path = "../../control/src/aws/xml.rs"]
mod xml;

/// Sizes, shares, lengths of time, compression, URLs and names.
pub fn text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(bytes) = units::parse_size(text) {
        accepted();
        assert_eq!(units::parse_size(&bytes.to_string()), Ok(bytes));
        assert_eq!(units::parse_size_u32(text).ok(), u32::try_from(bytes).ok());
    }
    if let Ok(share) = units::parse_share(text) {
        accepted();
        assert!(share > 0.0 && share <= 1.0);
    }
    if let Ok(duration) = units::parse_duration(text) {
        accepted();
        assert_eq!(
            units::parse_duration(&format!("{}s", duration.as_secs())).map(|d| d.as_secs()),
            Ok(duration.as_secs())
        );
    }
    if let Ok(within) = told(Within::parse(text)) {
        accepted();
        let shown = within.to_string();
        assert_eq!(Within::parse(&shown).expect("its own text").to_string(), shown);
    }
    if let Ok(compression) = told(Compression::parse(text)) {
        accepted();
        assert!(compression.levels().is_none_or(|levels| levels.start() <= levels.end()));
    }
    if let Ok(place) = told(Place::parse(text)) {
        accepted();
        if let Place::Bucket(bucket) = &place {
            assert_eq!(Place::parse(&bucket.to_string()).expect("its own text"), place);
        }
    }
    records::names(text);
}

/// What somebody typed is never called damage, and is in the message.
fn told<T>(result: penstock_engine::Result<T>) -> penstock_engine::Result<T> {
    result.inspect_err(|error| assert!(matches!(error, Error::Invalid { .. }), "{error}"))
}

/// The kernel's tables of mounts and swaps.
pub fn mount_tables(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        fuzzing::mount_tables(text);
        accepted();
    }
}

/// Answers of EC2 as JSON.
pub fn ec2_answer(data: &[u8]) {
    if let Some(value) = xml::json_of(data) {
        accepted();
        assert!(value.to_string().len() < data.len() * 8 + 64, "more than there was");
    }
}
