//! Policies, as `ec2 iam-policy` prints them.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::json;

/// All actions of a policy.
pub fn actions(policy: &Value) -> BTreeSet<String> {
    let statements = json::list(policy, "Statement").iter();
    statements.flat_map(|s| json::list(s, "Action")).map(|a| a.as_str().unwrap().to_owned()).collect()
}

/// The policy with an action in no statement.
pub fn without(policy: &Value, action: &str) -> Value {
    let mut policy = policy.clone();
    for statement in policy["Statement"].as_array_mut().unwrap() {
        statement["Action"].as_array_mut().unwrap().retain(|a| a != action);
    }
    policy
}
