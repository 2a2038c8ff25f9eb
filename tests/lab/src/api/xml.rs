//! Answers of the EC2 Query protocol and of STS. They are built as JSON values whose names are the elements' names.

use std::fmt::Write;

use quick_xml::escape::escape;
use serde_json::Value;

/// `<NameResponse xmlns=…><requestId>…</requestId>…</NameResponse>`.
pub fn ec2(action: &str, request_id: &str, body: &Value) -> String {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = write!(text, "<{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">");
    let _ = write!(text, "<requestId>{request_id}</requestId>");
    children(&mut text, body, "item");
    let _ = write!(text, "</{action}Response>");
    text
}

/// An error of the EC2 API.
pub fn ec2_error(code: &str, message: &str, request_id: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{}</Code><Message>{}</Message></Error></Errors><RequestID>{request_id}</RequestID></Response>",
        escape(code),
        escape(message)
    )
}

/// An answer of STS.
pub fn sts(action: &str, request_id: &str, body: &Value) -> String {
    let mut text =
        format!("<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result>");
    children(&mut text, body, "member");
    let _ = write!(
        text,
        "</{action}Result><ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{action}Response>"
    );
    text
}

/// An error of STS.
pub fn sts_error(status: u16, code: &str, message: &str, request_id: &str) -> String {
    let who = if status < 500 { "Sender" } else { "Receiver" };
    format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>{who}</Type><Code>{}</Code><Message>{}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>",
        escape(code),
        escape(message)
    )
}

/// Null members are left out; items of lists are called `item`.
fn children(text: &mut String, value: &Value, item: &str) {
    match value {
        Value::Object(members) => {
            for (name, member) in members.iter().filter(|(_, member)| !member.is_null()) {
                let _ = write!(text, "<{name}>");
                children(text, member, item);
                let _ = write!(text, "</{name}>");
            }
        }
        Value::Array(items) => {
            for member in items {
                let _ = write!(text, "<{item}>");
                children(text, member, item);
                let _ = write!(text, "</{item}>");
            }
        }
        Value::String(string) => text.push_str(&escape(string.as_str())),
        Value::Null => {}
        Value::Bool(_) | Value::Number(_) => {
            let _ = write!(text, "{value}");
        }
    }
}
