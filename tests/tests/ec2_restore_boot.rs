//! A machine whose root boots is backed up, restored, and really booted: kernel and login prompt on the serial console.

use penstock_tests::cloud::{self, Cloud};
use penstock_tests::repo::Repo;
use penstock_tests::workdir::Workdir;
use penstock_tests::{guest, json};

#[test]
fn a_restored_root_boots_to_its_login_prompt() {
    let work = Workdir::new("ec2-boot");
    let image = guest::bootable();
    let cloud = Cloud::of_images(cloud::options(&work), "web-01", &[&image]);
    let repo = Repo::encrypted(&work, "repo", &[]);
    let backup = cloud.backup(&repo, &["--no-anchor"]);
    for way in ["direct", "attach"] {
        let point = json::text(&backup, "recovery_point");
        let report = cloud.command(&repo, &["restore", point, "--write", way]).run().ok().json();
        let new = json::text(&json::list(&report, "volumes")[0], "restored_to");
        let path = work.join(&format!("{way}.img"));
        cloud.lab.volume_export(new, &path).unwrap();
        let console = guest::boots(&work.join(way), &path);
        assert!(console.contains("Linux version") && console.contains("login:"));
    }
}
