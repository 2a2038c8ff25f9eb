//! Access to JSON answers with messages that show the answer.

use serde_json::Value;

/// The number at `key`.
///
/// # Panics
/// If there is none; the message shows the object.
pub fn u64(object: &Value, key: &str) -> u64 {
    object.get(key).and_then(Value::as_u64).unwrap_or_else(|| panic!("no number {key:?} in {object:#}"))
}

/// The text at `key`. Panics as [`u64`].
pub fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_else(|| panic!("no text {key:?} in {object:#}"))
}

/// The list at `key`. Panics as [`u64`].
pub fn list<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    object.get(key).and_then(Value::as_array).unwrap_or_else(|| panic!("no list {key:?} in {object:#}"))
}

/// Sum of the numbers at `key` over the volumes of a `backup --json` answer.
pub fn over_volumes(backup: &Value, key: &str) -> u64 {
    list(backup, "volumes").iter().map(|volume| u64(volume, key)).sum()
}
