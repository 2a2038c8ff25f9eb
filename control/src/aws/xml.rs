//! XML as EC2 writes it, as JSON. It names nothing of this crate: the fuzz targets take the file as it is.

use quick_xml::Reader;
use quick_xml::events::Event;
use serde_json::{Map, Value};

/// Deeper answers are not EC2's.
const DEPTH_MAX: usize = 32;

/// An element that is being read.
struct Open {
    name: String,
    text: String,
    children: Vec<(String, Value)>,
}

/// Elements with children named `item` are arrays, others with children objects, those with text strings, empty ones
/// null.
pub fn json_of(xml: &[u8]) -> Option<Value> {
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
