//! Few descriptors: slower, or told; never a failure in the middle.

use penstock_tests::repo::Repo;
use penstock_tests::servers::Seaweed;
use penstock_tests::tools;
use penstock_tests::workdir::{Workdir, remove_if_there};
use penstock_tests::{MIB, compare, image};

fn days_with_few_descriptors(work: &Workdir, repo: &Repo, more: &[&str]) {
    tools::run("prlimit", &["--version"]);
    let few = ["prlimit", "--nofile=64:64"];
    let (disk, target) = (work.join("disk.img"), work.join("target.img"));
    image::random(&disk, 80 * MIB, 1);
    let workers = ["--workers", "8"];
    // more runs of the index, points and files in the cache than there are descriptors
    for night in 0..70u64 {
        image::patch_random(&disk, (night % 80) * MIB, 100_000, night);
        let backup = repo.backup_command(&disk, "disk", &workers).args(more);
        if night < 66 {
            backup.run().ok()
        } else {
            backup.under(few).run().ok()
        };
    }
    remove_if_there(&target);
    repo.restore_command("latest", &target, &workers).args(more).under(few).run().ok();
    compare::assert_identical(&disk, &target, "with 64 descriptors");
    for verb in [&["list"][..], &["verify"], &["stats"], &["gc", "--grace", "0s"], &["doctor"]] {
        repo.command(verb).args(more).under(few).run().ok();
    }
}

#[test]
fn a_directory() {
    let work = Workdir::new("narrow-local");
    let repo = Repo::encrypted(&work, "repo", &["--pack-size", "8MiB"]);
    days_with_few_descriptors(&work, &repo, &[]);
}

#[test]
fn an_object_store() {
    let work = Workdir::new("narrow-s3");
    let server = Seaweed::start(&work.join("s3"));
    let repo = Repo::on_s3(&work, "narrow", &server.endpoint(), &["--pack-size", "8MiB"]);
    days_with_few_descriptors(&work, &repo, &["--s3-connections", "64"]);
}
