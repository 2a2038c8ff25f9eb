//! IAM policies: whether a document allows an action. What of the language is there: Effect, Action, NotAction, Resource, NotResource, Condition.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::api::filter::like;

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A statement allows it, none denies it.
    Allowed,
    /// A statement denies it.
    Denied,
    /// No statement speaks of it.
    NotAllowed,
}

/// What is asked: may `action` be done to `resource` under these circumstances?
#[derive(Debug)]
pub struct Question<'a> {
    /// `ec2:CreateVolume`.
    pub action: &'a str,
    /// ARN, or `*`.
    pub resource: &'a str,
    /// Condition keys, lower case where AWS does not look at case, and their values.
    pub context: &'a BTreeMap<String, Vec<String>>,
}

fn list(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// Action names do not look at case.
fn names(patterns: &Value, action: &str) -> bool {
    let action = action.to_lowercase();
    list(patterns).iter().any(|pattern| like(&pattern.to_lowercase(), &action))
}

fn speaks(statement: &Value, question: &Question<'_>) -> bool {
    let action = match (statement.get("Action"), statement.get("NotAction")) {
        (Some(patterns), _) => names(patterns, question.action),
        (None, Some(patterns)) => !names(patterns, question.action),
        (None, None) => false,
    };
    let matches = |patterns: &Value| list(patterns).iter().any(|pattern| like(pattern, question.resource));
    let resource = match (statement.get("Resource"), statement.get("NotResource")) {
        (Some(patterns), _) => matches(patterns),
        (None, Some(patterns)) => !matches(patterns),
        (None, None) => false,
    };
    action && resource && holds(statement.get("Condition"), question.context)
}

fn holds(condition: Option<&Value>, context: &BTreeMap<String, Vec<String>>) -> bool {
    let Some(Value::Object(operators)) = condition else { return true };
    operators.iter().all(|(operator, keys)| {
        let Value::Object(keys) = keys else { return false };
        keys.iter().all(|(key, wanted)| {
            let wanted: Vec<String> = match wanted {
                Value::Bool(b) => vec![b.to_string()],
                other => list(other).into_iter().map(str::to_owned).collect(),
            };
            compare(operator, value_of(context, key), &wanted)
        })
    })
}

/// Names of condition keys do not look at case; keys of tags do.
fn value_of<'a>(context: &'a BTreeMap<String, Vec<String>>, key: &str) -> Option<&'a Vec<String>> {
    let found = context.iter().find(|(known, _)| match (known.split_once('/'), key.split_once('/')) {
        (Some((a, tag)), Some((b, other))) => a.eq_ignore_ascii_case(b) && tag == other,
        (None, None) => known.eq_ignore_ascii_case(key),
        _ => false,
    });
    found.map(|(_, values)| values)
}

fn compare(operator: &str, actual: Option<&Vec<String>>, wanted: &[String]) -> bool {
    if operator == "Null" {
        return wanted.iter().any(|w| (w == "true") == actual.is_none());
    }
    let (quantifier, name) = match operator.split_once(':') {
        Some((quantifier, name)) => (Some(quantifier), name),
        None => (None, operator),
    };
    let (name, if_exists) = match name.strip_suffix("IfExists") {
        Some(name) => (name, true),
        None => (name, false),
    };
    let (name, negated) = match name {
        "StringNotEquals" => ("StringEquals", true),
        "StringNotEqualsIgnoreCase" => ("StringEqualsIgnoreCase", true),
        "StringNotLike" => ("StringLike", true),
        "ArnNotEquals" | "ArnNotLike" => ("StringLike", true),
        other => (other, false),
    };
    let Some(actual) = actual else { return if_exists || negated || quantifier == Some("ForAllValues") };
    let one = |value: &String| {
        let hit = wanted.iter().any(|w| match name {
            "StringEquals" => w == value,
            "StringEqualsIgnoreCase" | "Bool" => w.eq_ignore_ascii_case(value),
            "StringLike" | "ArnEquals" | "ArnLike" => like(w, value),
            "NumericEquals" => number(w) == number(value),
            "NumericLessThanEquals" => number(value) <= number(w),
            "NumericGreaterThanEquals" => number(value) >= number(w),
            _ => false,
        });
        hit != negated
    };
    match quantifier {
        Some("ForAllValues") => actual.iter().all(one),
        _ => actual.iter().any(one),
    }
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok()
}

/// What a policy says.
pub fn decide(policy: &Value, question: &Question<'_>) -> Decision {
    let statements = match policy.get("Statement") {
        Some(Value::Array(statements)) => statements.iter().collect(),
        Some(one) => vec![one],
        None => Vec::new(),
    };
    let mut decision = Decision::NotAllowed;
    for statement in statements.into_iter().filter(|s| speaks(s, question)) {
        match statement.get("Effect").and_then(Value::as_str) {
            Some("Deny") => return Decision::Denied,
            Some("Allow") => decision = Decision::Allowed,
            _ => {}
        }
    }
    decision
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ask(policy: &Value, action: &str, tags: &[(&str, &str)]) -> Decision {
        let context = tags.iter().map(|(k, v)| ((*k).to_owned(), vec![(*v).to_owned()])).collect();
        let resource = "arn:aws:ec2:us-east-1:123456789012:volume/vol-1";
        decide(policy, &Question { action, resource, context: &context })
    }

    #[test]
    fn deny_wins_and_conditions_bind() {
        let policy = json!({"Statement": [
            {"Effect": "Allow", "Action": ["ec2:Describe*", "ec2:*Volume"], "Resource": "*"},
            {"Effect": "Deny", "Action": "ec2:DeleteVolume", "Resource": "*",
             "Condition": {"StringNotEquals": {"aws:ResourceTag/penstock": "run"}}},
        ]});
        assert_eq!(ask(&policy, "ec2:describevolumes", &[]), Decision::Allowed);
        assert_eq!(ask(&policy, "ec2:RunInstances", &[]), Decision::NotAllowed);
        assert_eq!(ask(&policy, "ec2:DeleteVolume", &[]), Decision::Denied);
        assert_eq!(
            ask(&policy, "ec2:DeleteVolume", &[("aws:ResourceTag/penstock", "run")]),
            Decision::Allowed
        );
        assert_eq!(
            ask(&policy, "ec2:DeleteVolume", &[("aws:ResourceTag/Penstock", "run")]),
            Decision::Denied
        );
    }

    #[test]
    fn positive_conditions_need_the_key() {
        let policy = json!({"Statement": {"Effect": "Allow", "Action": "*", "Resource": "arn:aws:ec2:*:*:volume/*",
            "Condition": {"StringEquals": {"aws:ResourceTag/a": ["1", "2"]}}}});
        assert_eq!(ask(&policy, "ec2:AttachVolume", &[]), Decision::NotAllowed);
        assert_eq!(ask(&policy, "ec2:AttachVolume", &[("aws:ResourceTag/a", "2")]), Decision::Allowed);
    }
}
