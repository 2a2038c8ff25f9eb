//! Everything that can go wrong between this program and S3, injected by a proxy in front of a real server: a run ends right, or with a clear error and the repository intact.
//! Wrong data is never silent.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use penstock_tests::lossy::Lossy;
use penstock_tests::penstock::{Output, code};
use penstock_tests::repo::Repo;
use penstock_tests::servers::{BUCKET, Microburst, SECRET, Seaweed};
use penstock_tests::slow::Slow;
use penstock_tests::workdir::{Workdir, remove_if_there};
use penstock_tests::{MIB, compare, image, json};

/// How a run under a fault may end.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    /// It must succeed: the fault passes.
    Right,
    /// It must fail, and say why.
    Error(&'static str),
    /// Either.
    RightOrError,
}

/// Server, proxy, and one repository as seen through either.
struct Scene {
    work: Workdir,
    _server: Seaweed,
    proxy: Microburst,
    direct: Repo,
    faulty: Repo,
    disk: PathBuf,
    first: String,
}

impl Scene {
    fn new(label: &str) -> Self {
        let work = Workdir::new(label);
        let server = Seaweed::start(&work.join("s3"));
        let proxy = Microburst::start(&server.endpoint(), work.path());
        let direct = Repo::on_s3(&work, label, &server.endpoint(), &["--pack-size", "8MiB"]);
        let faulty = direct.clone().with_env(&[
            ("PENSTOCK_S3_ENDPOINT", &proxy.endpoint()),
            ("PENSTOCK_S3_TIMEOUT", "2"),
            ("PENSTOCK_S3_PATIENCE", "20"),
        ]);
        let disk = work.join("disk.img");
        image::random(&disk, 20 * MIB, 1);
        let first = direct.backup_id(&disk, "first");
        Self { work, _server: server, proxy, direct, faulty, disk, first }
    }

    /// The error of a run that failed is one that people can act on.
    fn explained(&self, output: &Output, context: &str) {
        let said = output.show();
        assert!([code::FAILED, code::DAMAGE, code::NEWER].contains(&output.code), "{context}: {said}");
        assert!(
            said.contains(&format!("s3://{BUCKET}/")) || output.code != code::FAILED,
            "{context}: no object named: {said}"
        );
        assert!(!said.contains(SECRET), "{context}: a secret is shown");
    }

    fn injected(&self, rule: &Value, context: &str) {
        let fired = self.proxy.fired();
        assert!(fired > 0, "{context}: {rule} was never used, so nothing was tested");
        println!("{context}: {fired} faults");
        self.proxy.rules(&json!([]));
    }

    fn restores(&self, point: &str, image: &Path, context: &str) {
        let target = self.work.join("restored.img");
        remove_if_there(&target);
        self.direct.restore(point, &target, &[]);
        compare::assert_identical(image, &target, context);
    }

    /// A backup under the fault. Whatever it does, the repository is sound and its points can be restored.
    fn backup(&self, number: u64, context: &str, rule: Value, end: End) {
        let disk = self.work.join("new.img");
        image::random(&disk, 20 * MIB, 1000 + number);
        self.proxy.rules(&json!([rule]));
        let points = self.direct.point_ids().len();
        let output = self.faulty.backup_command(&disk, "new", &["--cache-size", "0"]).run();
        self.injected(&rule, context);
        match (output.code, end) {
            (code::DONE, End::Right | End::RightOrError) => {
                let point = json::text(&output.json(), "recovery_point").to_owned();
                self.restores(&point, &disk, context);
            }
            (code::DONE, _) | (_, End::Right) => panic!("{context}: {end:?} expected: {}", output.show()),
            (_, _) => {
                self.explained(&output, context);
                assert_eq!(
                    self.direct.point_ids().len(),
                    points,
                    "{context}: it failed, and yet there is a point"
                );
                if let End::Error(words) = end {
                    output.says(words);
                }
            }
        }
        self.direct.verify_is_clean();
        self.restores(&self.first, &self.disk, context);
    }

    /// A restore under the fault: right to the last byte, or an error.
    fn restore(&self, context: &str, rule: Value, end: End) {
        let target = self.work.join("target.img");
        remove_if_there(&target);
        self.proxy.rules(&json!([rule]));
        let output = self.faulty.restore_command(&self.first, &target, &["--cache-size", "0"]).run();
        self.injected(&rule, context);
        match (output.code, end) {
            (code::DONE, End::Right | End::RightOrError) => {
                compare::assert_identical(&self.disk, &target, context);
            }
            (code::DONE, _) | (_, End::Right) => panic!("{context}: {end:?} expected: {}", output.show()),
            (_, _) => {
                self.explained(&output, context);
                if let End::Error(words) = end {
                    output.says(words);
                }
            }
        }
    }
}

fn on(operation: &str, times: u64, fault: Value) -> Value {
    let mut rule = json!({"service": "s3", "operation": operation, "times": times});
    rule.as_object_mut().unwrap().extend(fault.as_object().unwrap().clone());
    rule
}

fn anywhere(fault: Value) -> Value {
    let mut rule = json!({"service": "s3"});
    rule.as_object_mut().unwrap().extend(fault.as_object().unwrap().clone());
    rule
}

fn error(code: &str, status: u64) -> Value {
    json!({"error": {"code": code, "status": status}})
}

#[test]
fn backups_under_passing_faults_end_right() {
    let scene = Scene::new("faults-backup");
    let throttled = json!({"probability": 0.3, "error": {"code": "SlowDown", "status": 503}});
    for (number, (context, rule)) in [
        ("slow down", anywhere(throttled)),
        ("internal errors", on("PutObject", 3, error("InternalError", 500))),
        ("conflicts", on("PutObject", 3, error("ConditionalRequestConflict", 409))),
        ("uploads cut off", on("PutObject", 3, json!({"request": {"cut_upload": {"after_bytes": 1024}}}))),
        ("resets", on("PutObject", 3, json!({"reset": true}))),
        ("hangs", on("PutObject", 2, json!({"timeout_ms": 30000}))),
        ("expired tokens", anywhere(json!({"times": 2, "error": {"code": "ExpiredToken", "status": 400}}))),
        ("listings cut short", on("ListObjectsV2", 2, json!({"response": {"truncate_frac": 0.5}}))),
        ("answers cut short", on("GetObject", 3, json!({"response": {"truncate_frac": 0.5}}))),
        ("answers broken off", on("GetObject", 3, json!({"response": {"abort_frac": 0.5}}))),
    ]
    .into_iter()
    .enumerate()
    {
        scene.backup(number as u64, context, rule, End::Right);
    }
}

/// The object is stored, its acknowledgement is lost, the repetition is told that the key is taken: by itself, which the bytes show.
#[test]
fn lost_acknowledgements_are_resolved() {
    let work = Workdir::new("faults-acks");
    let server = Seaweed::start(&work.join("s3"));
    let proxy = Lossy::start(server.port());
    proxy.lose(2); // the key slot and the configuration
    let repo = Repo::on_s3(&work, "acks", &proxy.endpoint(), &["--pack-size", "8MiB"]);
    assert_eq!(proxy.lost(), 2);
    let disk = work.join("disk.img");
    image::random(&disk, 20 * MIB, 5);
    proxy.lose(1000); // every one of packs, index and recovery point
    let output = repo.backup_command(&disk, "disk", &[]).run();
    let lost = proxy.lost() - 2;
    proxy.lose(0);
    assert!(lost >= 5, "{lost} lost");
    // Each first attempt succeeded without an answer, and so did not one repetition: all were answered "exists", and those answers were lost too.
    output.expect(&[code::FAILED]).says("cannot store").says("attempts");
    repo.verify_is_clean();

    for losing in [1, 3, 6] {
        proxy.lose(losing);
        image::random(&disk, 20 * MIB, 100 + losing as u64);
        let point = repo.backup_id(&disk, "disk");
        assert_eq!(proxy.lost(), lost + 2 + [1, 3, 6].iter().filter(|n| **n <= losing).sum::<usize>());
        let target = work.join("target.img");
        remove_if_there(&target);
        repo.restore(&point, &target, &[]);
        compare::assert_identical(&disk, &target, "after lost acknowledgements");
        assert_eq!(repo.point_ids().len(), [1, 3, 6].iter().position(|n| *n == losing).unwrap() + 1);
    }
    repo.verify_is_clean();
}

/// A service that does not know conditions is told within seconds: repeating changes nothing.
#[test]
fn a_service_without_conditional_puts_is_told() {
    let work = Workdir::new("faults-501");
    let server = Seaweed::start(&work.join("s3"));
    let proxy = Microburst::start(&server.endpoint(), work.path());
    let repo = Repo::in_cloud(&work, "none", "s3").reaching_s3(&proxy.endpoint());
    proxy.rules(&json!([on("PutObject", 1_000_000, error("NotImplemented", 501))]));
    let failed = repo.command(&["init"]).run();
    failed.expect(&[code::FAILED]).says("If-None-Match").says("NotImplemented");
    assert_eq!(proxy.fired(), 1, "it was tried again");
    repo.command(&["list"]).run().expect(&[code::NO_REPOSITORY]);
}

/// A service or proxy that drops the condition answers as if all were well: two writers could replace each other's
/// objects.
#[test]
fn a_service_that_ignores_conditions_is_found_out() {
    let work = Workdir::new("faults-replaces");
    let server = Seaweed::start(&work.join("s3"));
    let proxy = Slow::start(server.port());
    let disk = work.join("disk.img");
    image::random(&disk, 4 * MIB, 1);
    let honest = Repo::on_s3(&work, "replaces", &server.endpoint(), &[]);
    let behind = honest.clone().with_env(&[("PENSTOCK_S3_ENDPOINT", &proxy.endpoint())]);
    behind.command(&["doctor"]).run().says("never replaced");
    behind.backup(&disk, "disk", &[]);
    let requests = |repo: &Repo| json::u64(&repo.backup(&disk, "disk", &[])["requests"], "put");
    let remembered = requests(&behind);
    let asked = requests(&behind.elsewhere(&work, "other.state"));
    assert_eq!(asked, remembered + 1, "it is asked once from each machine, and costs one request");

    proxy.ignore_conditions();
    behind.command(&["doctor"]).run().expect(&[code::FAILED]).says("If-None-Match").says("replaced");
    let points = honest.point_ids();
    for args in [&[][..], &["--cache-size", "0"]] {
        let fresh = behind.elsewhere(&work, &format!("fresh{}.state", args.len()));
        fresh.backup_command(&disk, "disk", args).run().expect(&[code::FAILED]).says("If-None-Match");
    }
    assert_eq!(honest.point_ids(), points);
    let new = Repo::in_cloud(&work, "new", "s3").reaching_s3(&proxy.endpoint());
    new.command(&["init"]).run().expect(&[code::FAILED]).says("If-None-Match");
    assert!(proxy.ignored() >= 9, "{}", proxy.ignored());
    new.command(&["list"]).run().expect(&[code::NO_REPOSITORY]);
    assert_eq!(server.objects(BUCKET, "new"), 0, "nothing of it stays");
    honest.verify_is_clean();
}

#[test]
fn restores_under_passing_faults_end_right() {
    let scene = Scene::new("faults-restore");
    let throttled = json!({"probability": 0.3, "error": {"code": "SlowDown", "status": 503}});
    for (context, rule) in [
        ("slow down", anywhere(throttled)),
        ("internal errors", on("GetObject", 4, error("InternalError", 500))),
        ("answers cut short", on("GetObject", 6, json!({"response": {"truncate_frac": 0.5}}))),
        ("answers broken off", on("GetObject", 6, json!({"response": {"abort_frac": 0.5}}))),
        ("one answer corrupted", on("GetObject", 1, json!({"response": {"corrupt_bytes": 16}}))),
        ("resets", on("GetObject", 4, json!({"reset": true}))),
        ("hangs", on("GetObject", 2, json!({"timeout_ms": 30000}))),
        ("expired tokens", anywhere(json!({"times": 2, "error": {"code": "ExpiredToken", "status": 400}}))),
        ("listings cut short", on("ListObjectsV2", 2, json!({"response": {"truncate_frac": 0.5}}))),
    ] {
        scene.restore(context, rule, End::Right);
    }
}

#[test]
fn faults_that_stay_are_told() {
    let scene = Scene::new("faults-stay");
    let always = |operation: &str, fault: Value| on(operation, 1_000_000, fault);
    scene.backup(
        50,
        "always slow",
        always("PutObject", error("SlowDown", 503)),
        End::Error("limits the rate"),
    );
    scene.backup(51, "never an answer", always("PutObject", json!({"reset": true})), End::Error("attempts"));
    scene.backup(52, "denied", always("PutObject", error("AccessDenied", 403)), End::Error("OPERATIONS.md"));
    scene.backup(
        53,
        "expired for good",
        always("PutObject", error("ExpiredToken", 400)),
        End::Error("expired"),
    );
    let corrupt = json!({"response": {"corrupt_bytes": 16}});
    scene.backup(54, "all answers corrupted", always("GetObject", corrupt.clone()), End::RightOrError);
    scene.restore("all answers corrupted", always("GetObject", corrupt), End::RightOrError);
    let short = json!({"response": {"truncate_frac": 0.5}});
    scene.restore("all answers cut short", always("GetObject", short), End::Error("promised"));
    let often = json!({"probability": 0.3, "response": {"corrupt_bytes": 16}});
    scene.restore("many answers corrupted", always("GetObject", often), End::RightOrError);
}
