//! The lab as a library and as a program.

#![allow(clippy::unwrap_used)] // a panic is the report

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use penstock_lab::{InstanceSpec, Lab, Options, Quotas, Scenario, Timing, VolumeSpec};
use serde_json::Value;

/// A call without a signature that anybody could check.
fn call(address: &str, method: &str, path: &str, service: &str, headers: &str, body: &str) -> (u16, String) {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}Authorization: AWS4-HMAC-SHA256 \
         Credential=AKIAPENSTOCKLAB00001/20260804/us-east-1/{service}/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn ec2(address: &str, form: &str) -> String {
    let (status, body) = call(address, "POST", "/", "ec2", "", &format!("Version=2016-11-15&{form}"));
    assert_eq!(status, 200, "{form}: {body}");
    body
}

/// The text of the first element of that name.
fn element(xml: &str, name: &str) -> String {
    let start = xml.find(&format!("<{name}>")).unwrap() + name.len() + 2;
    xml[start..].split('<').next().unwrap().to_owned()
}

fn loops(root: &Path) -> usize {
    let list =
        Command::new("losetup").args(["--list", "--noheadings", "--output", "BACK-FILE"]).output().unwrap();
    let root = root.to_str().unwrap();
    String::from_utf8_lossy(&list.stdout).lines().filter(|line| line.contains(root)).count()
}

/// A device that somebody else's search for a free one has open at this moment goes a moment later.
fn only_loops(root: &Path, wanted: usize) {
    let end = Instant::now() + Duration::from_secs(5);
    while loops(root) != wanted {
        assert!(Instant::now() < end, "{} loop devices, not {wanted}", loops(root));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn quick() -> Options {
    Options {
        timing: Timing::instant(),
        quotas: Quotas::off(),
        verify_signatures: false,
        ..Options::default()
    }
}

/// A process that does not outlive a failed test.
struct Running(Child);

impl Running {
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program, and what it said when it was ready.
fn program(root: &Path, options: &Path) -> (Running, Value) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_penstock-lab"))
        .args(["--instant", "--no-quotas", "--root"])
        .arg(root)
        .arg("--options")
        .arg(options)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Running(child), serde_json::from_str(&line).unwrap())
}

#[test]
fn a_killed_lab_leaves_loop_devices_that_the_next_one_removes() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap().join("root");
    let options = dir.path().join("options.json");
    std::fs::write(&options, r#"{"verify_signatures": false}"#).unwrap();
    let (mut child, ready) = program(&root, &options);
    let address = ready["endpoint"].as_str().unwrap().trim_start_matches("http://").to_owned();
    let made = ec2(&address, "Action=CreateVolume&AvailabilityZone=us-east-1a&Size=1");
    let volume = element(&made, "volumeId");
    let proxy = ready["proxy"].as_str().unwrap();
    ec2(&address, &format!("Action=AttachVolume&VolumeId={volume}&InstanceId={proxy}&Device=/dev/sdf"));
    only_loops(&root, 1);
    child.kill();
    only_loops(&root, 1);
    let (mut child, ready) = program(&root, &options);
    assert_eq!(ready["ready"], true);
    only_loops(&root, 0);
    child.kill();
}

/// Temporary roots have no successor; any later lab cleans up after them.
#[test]
fn a_killed_lab_with_a_temporary_root_is_cleaned_up_by_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_penstock-lab"))
            .args(["--instant", "--scenario"])
            .arg(dir.path().join("scenario.json"))
            .env("TMPDIR", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("\"ready\":true"), "{line}");
        Running(child)
    };
    let proxy = r#"{"instances": [{"proxy": true, "volumes": [{}, {"size_gib": 1}]}]}"#;
    std::fs::write(dir.path().join("scenario.json"), proxy).unwrap();
    let home = dir.path().canonicalize().unwrap();
    let mut first = start();
    only_loops(&home, 1);
    first.kill();
    only_loops(&home, 1);
    let mut second = start();
    only_loops(&home, 1);
    let roots = std::fs::read_dir(&home).unwrap().flatten().filter(|e| e.path().is_dir()).count();
    assert_eq!(roots, 1);
    // ended politely, a lab takes everything with it
    let ended = Command::new("kill").arg(second.0.id().to_string()).status().unwrap();
    assert!(ended.success() && second.0.wait().unwrap().success());
    only_loops(&home, 0);
}

#[test]
fn devices_go_with_the_lab() {
    let lab = Lab::start(quick()).unwrap();
    let address = lab.address().to_string();
    let volume = lab.add_volume(&VolumeSpec { size_gib: Some(1), ..VolumeSpec::default() }).unwrap();
    lab.volume_write(&volume, 8192, b"hello").unwrap();
    let before = lab.dump();
    ec2(
        &address,
        &format!("Action=AttachVolume&VolumeId={volume}&InstanceId={}&Device=/dev/sdf", lab.proxy_id()),
    );
    let link = format!("disk/by-id/nvme-Amazon_Elastic_Block_Store_{}", volume.replace('-', ""));
    let node = lab.dev_dir().join(link).canonicalize().unwrap();
    assert_eq!(Some(&node), lab.volume_node(&volume).as_ref());
    let mut bytes = [0; 5];
    std::fs::File::open(&node).unwrap().read_exact_at(&mut bytes, 8192).unwrap();
    assert_eq!(&bytes, b"hello");
    assert_ne!(lab.dump(), before);
    ec2(&address, &format!("Action=DetachVolume&VolumeId={volume}"));
    assert_eq!(lab.dump(), before);
    ec2(
        &address,
        &format!("Action=AttachVolume&VolumeId={volume}&InstanceId={}&Device=/dev/sdf", lab.proxy_id()),
    );
    let root = lab.root.clone();
    only_loops(&root, 1);
    drop(lab);
    only_loops(&root, 0);
    assert!(!root.exists());
}

/// 16 TiB less one: ext4 holds no file of 16 TiB.
#[test]
fn a_volume_of_sixteen_tebibytes_costs_what_was_written() {
    const GIB: u64 = 1 << 30;
    let lab = Lab::start(quick()).unwrap();
    let address = lab.address().to_string();
    let spec = VolumeSpec { size_gib: Some(16_383), volume_type: "gp3".into(), ..VolumeSpec::default() };
    let volume = lab.add_volume(&spec).unwrap();
    for n in 0..4000_u64 {
        lab.volume_write(&volume, n * 4 * GIB, &n.to_le_bytes()).unwrap();
    }
    let began = Instant::now();
    let first = element(&ec2(&address, &format!("Action=CreateSnapshot&VolumeId={volume}")), "snapshotId");
    for n in 0..40_u64 {
        lab.volume_write(&volume, n * 400 * GIB + 4096, b"changed").unwrap();
    }
    let second = element(&ec2(&address, &format!("Action=CreateSnapshot&VolumeId={volume}")), "snapshotId");
    let made = ec2(&address, &format!("Action=CreateVolume&AvailabilityZone=us-east-1a&SnapshotId={second}"));
    assert_eq!(lab.volume_read(&element(&made, "volumeId"), 400 * GIB + 4096, 7).unwrap(), b"changed");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let path = format!("/snapshots/{second}/changedblocks?firstSnapshotId={first}");
    let (status, body) = call(&address, "GET", &path, "ebs", "", "");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, body["ChangedBlocks"].as_array().unwrap().len()), (200, 40));
    assert_eq!(body["VolumeSize"], 16_383);
}

#[test]
fn the_same_seed_makes_the_same_account() {
    let scenario = Scenario {
        key_pairs: vec!["ops".into()],
        instances: vec![InstanceSpec {
            name: "web".into(),
            key_name: Some("ops".into()),
            volumes: vec![VolumeSpec::default(), VolumeSpec::default()],
            ..InstanceSpec::default()
        }],
        ..Scenario::default()
    };
    let dump = |seed| Lab::start(Options { seed, scenario: scenario.clone(), ..quick() }).unwrap().dump();
    assert_eq!(dump(5), dump(5));
    assert_ne!(dump(5), dump(6));
}

#[test]
fn the_scenario_of_the_documentation_is_one() {
    let text = include_str!("../../../docs/LAB.md");
    let start = text.find("    {\"key_pairs\"").unwrap();
    let example: String = text[start..].lines().take_while(|line| line.starts_with("    ")).collect();
    let mut scenario: Scenario = serde_json::from_str(&example).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for volume in scenario.instances.iter_mut().flat_map(|i| &mut i.volumes) {
        if let Some(file) = &mut volume.file {
            *file = dir.path().join(&*file);
            std::fs::write(&*file, b"contents").unwrap();
        }
    }
    let lab = Lab::start(Options { scenario, ..quick() }).unwrap();
    let body = ec2(&lab.address().to_string(), "Action=DescribeInstances");
    assert_eq!(body.matches("<instanceId>").count(), 2, "{body}");
    assert_eq!(lab.calls.counts()["DescribeInstances"].ok, 1);
}
