//! An independent reading of AWS: boto3 and the AWS command line drive the lab, and hold its raw answers against botocore's models.
//!
//! `tests/servers DIR` installs them; `PENSTOCK_TEST_SERVERS` names the directory. The cases are in `conformance/test_*.py`.

use std::path::{Path, PathBuf};
use std::process::Command;

use penstock_lab::{Lab, Options, Quotas, Scenario, SubnetSpec};

fn python() -> PathBuf {
    let dir = std::env::var_os("PENSTOCK_TEST_SERVERS").map_or_else(
        || std::env::home_dir().unwrap_or_default().join(".cache/penstock-servers"),
        PathBuf::from,
    );
    let python = dir.join("aws/bin/python");
    assert!(
        python.is_file(),
        "there is no boto3 in {}: run `bash tests/run`, or `bash tests/servers {0}`",
        dir.display()
    );
    python
}

#[test]
fn boto3_and_the_command_line_agree() {
    let apart =
        SubnetSpec { zone: "a".into(), cidr: "10.9.0.0/24".into(), own_vpc: true, ..SubnetSpec::default() };
    let scenario = Scenario { subnets: vec![apart], ..Scenario::default() };
    let lab = Lab::start(Options { quotas: Quotas::off(), scenario, ..Options::default() }).unwrap();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    let done = Command::new(python())
        .args(["-B", "-W", "ignore::ResourceWarning", "-m", "unittest", "discover", "-s"])
        .arg(&cases)
        .current_dir(&cases)
        .envs(lab.env())
        .env("LAB_PROXY", lab.proxy_id())
        .env("LAB_DEV", lab.dev_dir())
        .env("LAB_SYS", lab.sys_dir())
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env_remove("AWS_PROFILE")
        .env_remove("AWS_SESSION_TOKEN")
        .env("AWS_PAGER", "")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    println!("{said}");
    assert!(done.status.success(), "see above");
    assert!(said.contains("\nOK"), "no test ran");
}
