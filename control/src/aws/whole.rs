//! Answers of EC2 as they came, as JSON: a recovery point keeps all that AWS says of an instance, also what this program does not know yet.

use std::sync::{Arc, Mutex, PoisonError};

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::AfterDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use quick_xml::Reader;
use quick_xml::events::Event;
use serde_json::{Map, Value};

/// Deeper answers are not EC2's.
const DEPTH_MAX: usize = 32;

/// Keeps the body of the last answer of a call that it is given to.
#[derive(Clone, Debug, Default)]
pub struct Capture(Arc<Mutex<Vec<u8>>>);

impl Intercept for Capture {
    fn name(&self) -> &'static str {
        "Capture"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(bytes) = context.response().body().bytes() {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bytes.to_vec();
        }
        Ok(())
    }
}

impl Capture {
    /// What the answer says, below its outermost element; `Null` if it cannot be read.
    pub fn json(&self) -> Value {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        json_of(&bytes).unwrap_or_else(|| {
            tracing::warn!("an answer of EC2 could not be kept as JSON");
            Value::Null
        })
    }
}

/// An element that is being read.
struct Open {
    name: String,
    text: String,
    children: Vec<(String, Value)>,
}

/// Elements with children named `item` are arrays, others with children objects, those with text strings, empty ones null.
fn json_of(xml: &[u8]) -> Option<Value> {
    let mut reader = Reader::from_reader(xml);
    let mut stack: Vec<Open> = Vec::new();
    let mut buf = Vec::new();
    loop {
        match reader.read_event_into(&mut buf).ok()? {
            Event::Start(start) => {
                if stack.len() == DEPTH_MAX {
                    return None;
                }
                let name = String::from_utf8_lossy(start.local_name().as_ref()).into_owned();
                stack.push(Open { name, text: String::new(), children: Vec::new() });
            }
            Event::Empty(empty) => {
                let name = String::from_utf8_lossy(empty.local_name().as_ref()).into_owned();
                stack.last_mut()?.children.push((name, Value::Null));
            }
            Event::Text(text) => {
                if let Some(open) = stack.last_mut() {
                    open.text += &text.decode().ok()?;
                }
            }
            Event::GeneralRef(reference) => {
                if let Some(open) = stack.last_mut() {
                    let name = reference.decode().ok()?;
                    match reference.resolve_char_ref().ok()? {
                        Some(character) => open.text.push(character),
                        None => open.text += quick_xml::escape::resolve_xml_entity(&name)?,
                    }
                }
            }
            Event::End(_) => {
                let open = stack.pop()?;
                let name = open.name.clone();
                let value = closed(open);
                match stack.last_mut() {
                    Some(parent) => parent.children.push((name, value)),
                    None => return Some(value),
                }
            }
            Event::Eof => return None,
            _ => {}
        }
        buf.clear();
    }
}

fn closed(open: Open) -> Value {
    if open.children.is_empty() {
        let text = open.text.trim();
        return if text.is_empty() { Value::Null } else { Value::from(text) };
    }
    if open.children.iter().all(|(name, _)| name == "item") {
        return open.children.into_iter().map(|(_, value)| value).collect();
    }
    Value::Object(open.children.into_iter().collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_become_json() {
        let xml = br#"<?xml version="1.0"?><DescribeX xmlns="u"><requestId>r</requestId><set><item><a>1 &lt; 2</a><b/></item><item><a>x</a></item></set></DescribeX>"#;
        assert_eq!(
            json_of(xml),
            Some(json!({"requestId": "r", "set": [{"a": "1 < 2", "b": null}, {"a": "x"}]}))
        );
        assert_eq!(json_of(b"<a><b></a>"), None);
        assert_eq!(json_of(b"nonsense"), None);
        assert_eq!(json_of("<a>".repeat(100).as_bytes()), None);
    }
}
