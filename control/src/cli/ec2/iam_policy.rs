//! `penstock ec2 iam-policy`: the permissions that the proxy needs, and no more.

use serde_json::{Value, json};

use super::super::exit::{Exit, Outcome};
use super::super::output;
use crate::aws::tags;

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

fn allow(id: &str, actions: &[&str], resource: Value) -> Value {
    json!({"Sid": id, "Effect": "Allow", "Action": actions, "Resource": resource})
}

fn with(mut statement: Value, condition: Value) -> Value {
    statement["Condition"] = condition;
    statement
}

fn policy(args: &Args) -> Value {
    let resource = |kind: &str| format!("arn:aws:ec2:*:*:{kind}/*");
    let images_and_snapshots = json!(["arn:aws:ec2:*::snapshot/*", "arn:aws:ec2:*::image/*"]);
    let ours = json!({"StringLike": {format!("aws:ResourceTag/{}", tags::RUN): "*"}});
    let mut creating = vec!["CreateSnapshots"];
    let mut ours_actions = vec!["ec2:DeleteSnapshot", "ec2:CreateTags", "ec2:DeleteTags"];
    let mut statements = vec![
        allow(
            "Describe",
            &[
                "ec2:DescribeInstances",
                "ec2:DescribeInstanceAttribute",
                "ec2:DescribeVolumes",
                "ec2:DescribeSnapshots",
                "ec2:DescribeImages",
            ],
            json!("*"),
        ),
        allow(
            "Snapshot",
            &["ec2:CreateSnapshots"],
            json!([resource("instance"), resource("volume"), "arn:aws:ec2:*::snapshot/*"]),
        ),
        allow(
            "ReadSnapshots",
            &["ebs:ListSnapshotBlocks", "ebs:ListChangedBlocks", "ebs:GetSnapshotBlock"],
            json!("arn:aws:ec2:*::snapshot/*"),
        ),
    ];
    if !args.no_attach {
        creating.push("CreateVolume");
        statements.push(allow(
            "MakeVolumes",
            &["ec2:CreateVolume"],
            json!([resource("volume"), "arn:aws:ec2:*::snapshot/*"]),
        ));
        statements.push(allow(
            "AttachToProxy",
            &["ec2:AttachVolume", "ec2:DetachVolume"],
            json!(resource("instance")),
        ));
        let volumes = &["ec2:AttachVolume", "ec2:DetachVolume", "ec2:DeleteVolume"];
        statements.push(with(allow("OwnVolumes", volumes, json!(resource("volume"))), ours.clone()));
    }
    if !args.no_ami {
        creating.push("CreateImage");
        ours_actions.push("ec2:DeregisterImage");
        let on = json!([
            resource("instance"),
            resource("volume"),
            "arn:aws:ec2:*::image/*",
            "arn:aws:ec2:*::snapshot/*"
        ]);
        statements.push(allow("MakeImages", &["ec2:CreateImage"], on));
    }
    let new = json!(["arn:aws:ec2:*::snapshot/*", "arn:aws:ec2:*::image/*", resource("volume")]);
    let at_creation = json!({"StringEquals": {"ec2:CreateAction": creating}});
    statements.push(with(allow("TagNewThings", &["ec2:CreateTags"], new), at_creation));
    statements.push(with(allow("OwnThings", &ours_actions, images_and_snapshots), ours));
    if !args.no_kms {
        let through = json!({"StringLike": {"kms:ViaService": "ec2.*.amazonaws.com"}});
        statements.push(allow("ReadEncrypted", &["kms:Decrypt", "kms:DescribeKey"], json!("*")));
        let actions = &["kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncrypt*"];
        statements.push(with(allow("MakeEncrypted", actions, json!("*")), through));
        let granted = json!({"Bool": {"kms:GrantIsForAWSResource": "true"}});
        statements.push(with(allow("Grant", &["kms:CreateGrant"], json!("*")), granted));
    }
    json!({"Version": "2012-10-17", "Statement": statements})
}
