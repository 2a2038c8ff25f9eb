//! Runs a command with a server of each kind of cloud storage beside it: `with-servers COMMAND…`. For tests of crates that this one does not know.

use std::process::{Command, ExitCode};

use penstock_tests::servers::{AZURE_ACCOUNT, AZURE_KEY, Azurite, BUCKET, KEY_ID, SECRET, Seaweed};
use penstock_tests::workdir::Workdir;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(program) = args.next() else {
        eprintln!("with-servers COMMAND…");
        return ExitCode::from(2);
    };
    let work = Workdir::new("servers");
    let (s3, azure) = (Seaweed::start(&work.join("s3")), Azurite::start(work.path()));
    let status = Command::new(program)
        .args(args)
        .env("PENSTOCK_TEST_BUCKET", BUCKET)
        .env("PENSTOCK_TEST_S3", s3.endpoint())
        .env("AWS_ACCESS_KEY_ID", KEY_ID)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("PENSTOCK_TEST_AZURE", azure.endpoint())
        .env("AZURE_STORAGE_ACCOUNT_NAME", AZURE_ACCOUNT)
        .env("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY)
        .status()
        .expect("the command can be run");
    ExitCode::from(u8::from(!status.success()))
}
