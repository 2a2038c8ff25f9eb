//! `penstock ec2 iam-policy`: the permissions that the proxy needs, and no more.

use serde_json::{Value, json};

use super::super::exit::{Exit, Outcome};
use super::super::output;
use crate::aws::permissions::{self, PERMISSIONS, Part, Permission, Scope};

const EXAMPLES: &str = "\
Examples:
  penstock ec2 iam-policy > penstock-proxy.json
  penstock ec2 iam-policy --no-attach --no-ami

Deleting, detaching and re-tagging is bound to things with the tag penstock:run, which this program puts on all it makes.
What the repository needs (s3:…) is in docs/OPERATIONS.md.";

/// Print the IAM policy that ec2 backup, list and sweep need
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Without what attaching volumes needs: for --read direct only
    #[arg(long)]
    no_attach: bool,

    /// Without what --mode ami needs
    #[arg(long)]
    no_ami: bool,

    /// Without KMS keys: for volumes that are not encrypted
    #[arg(long)]
    no_kms: bool,
}

/// Prints it.
pub fn run(args: &Args) -> Outcome {
    let text = serde_json::to_string_pretty(&policy(args)).unwrap_or_default();
    output::print(&(text + "\n"))?;
    Ok(Exit::Done)
}

fn policy(args: &Args) -> Value {
    let wanted = |part: Part| match part {
        Part::Always => true,
        Part::Attach => !args.no_attach,
        Part::Ami => !args.no_ami,
        Part::Kms => !args.no_kms,
    };
    let permissions: Vec<&Permission> = PERMISSIONS.iter().filter(|p| wanted(p.part)).collect();
    let statements: Vec<Value> =
        Scope::ALL.into_iter().filter_map(|scope| statement(scope, &permissions)).collect();
    json!({"Version": "2012-10-17", "Statement": statements})
}

/// What is allowed there; `None` if nothing is.
fn statement(scope: Scope, permissions: &[&Permission]) -> Option<Value> {
    let actions: Vec<&str> =
        permissions.iter().filter(|p| p.scopes.contains(&scope)).map(|p| p.action).collect();
    if actions.is_empty() {
        return None;
    }
    let resource = match scope.resources() {
        [one] => json!(one),
        several => json!(several),
    };
    let mut statement = json!({
        "Sid": format!("{scope:?}"), "Effect": "Allow", "Action": actions, "Resource": resource,
    });
    if scope == Scope::TagNewThings {
        let creating: Vec<&str> =
            permissions.iter().filter(|p| p.makes).map(|p| permissions::call_of(p.action)).collect();
        statement["Condition"] = json!({"StringEquals": {"ec2:CreateAction": creating}});
    } else if let Some((operator, key, value)) = scope.condition() {
        statement["Condition"] = json!({operator: {key: value}});
    }
    Some(statement)
}
