//! `penstock ec2 iam-policy`: the permissions that the proxy needs, and no more.

use serde_json::{Value, json};

use super::super::exit::{Exit, Outcome};
use super::super::output;
use crate::aws::permissions::{self, PERMISSIONS, Part, Permission, Scope};

const EXAMPLES: &str = "\
Examples:
  penstock ec2 iam-policy > penstock-proxy.json
  penstock ec2 iam-policy --no-attach --no-ami --no-restore
  penstock ec2 iam-policy --pass-role arn:aws:iam::123456789012:role/web > penstock-restore.json

Deleting, detaching, terminating and re-tagging is bound to things with the tag penstock:run, which this program puts on all it makes,
and takes from what it has restored. Instances with an instance profile are restored by whoever may pass its role: name it by --pass-role.
What the repository needs (s3:…) is in docs/OPERATIONS.md.";

/// Print the IAM policy that ec2 backup, restore, list and sweep need
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

    /// Without what restores need: for a machine that only backs up
    #[arg(long, conflicts_with_all = ["onto", "pass_role"])]
    no_restore: bool,

    /// With what restores over volumes that exist need (ec2 restore --onto): detaching and attaching any volume
    #[arg(long)]
    onto: bool,

    /// A role that restored instances may get, by ARN, as the profiles of the instances have it; may be repeated
    #[arg(long, value_name = "ARN")]
    pass_role: Vec<String>,
}

/// Prints it.
pub fn run(args: &Args) -> Outcome {
    let text = serde_json::to_string_pretty(&policy(args)).unwrap_or_default();
    output::print(&(text + "\n"))?;
    Ok(Exit::Done)
}

fn policy(args: &Args) -> Value {
    let (attach, ami, kms, restore) = (!args.no_attach, !args.no_ami, !args.no_kms, !args.no_restore);
    let wanted = |part: Part| match part {
        Part::Always => true,
        Part::Attach => attach,
        Part::Ami => ami,
        Part::Kms => kms,
        Part::Restore => restore,
        Part::Volumes => attach || restore,
        Part::Images => ami || restore,
        Part::RestoreKms => kms && restore,
    };
    let scoped = |scope: Scope| match scope {
        Scope::AnyVolumes => args.onto,
        Scope::PassRoles => !args.pass_role.is_empty(),
        // Its actions are those of backups, too.
        Scope::OwnRestored => restore,
        _ => true,
    };
    let permissions: Vec<&Permission> =
        PERMISSIONS.iter().filter(|p| wanted(p.part) || (args.onto && p.part == Part::Attach)).collect();
    let scopes = Scope::ALL.into_iter().filter(|scope| scoped(*scope));
    let statements: Vec<Value> =
        scopes.filter_map(|scope| statement(scope, &permissions, &args.pass_role)).collect();
    json!({"Version": "2012-10-17", "Statement": statements})
}

/// What is allowed there; `None` if nothing is.
fn statement(scope: Scope, permissions: &[&Permission], roles: &[String]) -> Option<Value> {
    let actions: Vec<&str> =
        permissions.iter().filter(|p| p.scopes.contains(&scope)).map(|p| p.action).collect();
    if actions.is_empty() {
        return None;
    }
    let resources: Vec<&str> = match scope {
        Scope::PassRoles => roles.iter().map(String::as_str).collect(),
        other => other.resources().to_vec(),
    };
    let resource = match resources.as_slice() {
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
