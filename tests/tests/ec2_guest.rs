//! `penstock ec2 backup` inside a real guest, which plays the proxy: attached volumes are NVMe drives that are plugged in while it runs, and they are
//! found in the guest's own sysfs. There is no udev in it, so no by-id links: what is tried here is the serial of the controllers; `ec2` tries both.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use penstock_lab::{Devices, InstanceSpec, Lab, Options, Placed, VolumeSpec};
use penstock_tests::cloud::{self, Cloud};
use penstock_tests::filesystem::{FsKind, Mount};
use penstock_tests::guest::{Drive, Guest, Spec};
use penstock_tests::initramfs::{Initramfs, Ran};
use penstock_tests::penstock::{binary, code};
use penstock_tests::repo::{Access, Repo};
use penstock_tests::workdir::Workdir;
use penstock_tests::{GIB, MIB, image, json};
use serde_json::Value;

/// Much more than it takes, a minute of it until the volume is given up that never comes: nobody knows who else uses this machine.
const PATIENCE: Duration = Duration::from_secs(280);
/// What a volume takes to be plugged in after it is `attached`; nothing in EC2 says that it is at once.
const PLUG_DELAY: Duration = Duration::from_millis(700);

/// A machine whose volumes all have one GiB, each with other contents.
fn machine(lab: &Lab, work: &Workdir, name: &str, seeds: &[u64]) -> Placed {
    let volume = |seed: &u64| {
        let file = work.join(&format!("{name}-{seed}.img"));
        image::mixed(&file, 16 * MIB, *seed);
        VolumeSpec { file: Some(file), ..VolumeSpec::default() }
    };
    let volumes = seeds.iter().map(volume).collect();
    lab.add_instance(&InstanceSpec { name: name.into(), volumes, ..InstanceSpec::default() }).unwrap()
}

/// A drive that nobody asked for, of the size of the volumes.
fn decoy(work: &Workdir, number: u64) -> Drive {
    // as EBS names them: nothing but the whole serial tells it from the others
    let serial = format!("vol0dec0{number:012x}");
    let file = work.join(&serial);
    image::mixed(&file, 16 * MIB, 90 + number);
    std::fs::File::options().write(true).open(&file).unwrap().set_len(GIB).unwrap();
    Drive { serial, file }
}

/// Volumes at the proxy that penstock made: which one, of which volume it is a copy.
fn at_proxy(lab: &Lab) -> BTreeMap<String, String> {
    let dump = lab.dump();
    let proxy = lab.proxy_id();
    let volumes = dump[&lab.options.region]["volumes"].as_object().unwrap();
    let found = volumes.iter().filter(|(_, v)| v["attachment"]["instance_id"] == proxy.as_str());
    found
        .filter_map(|(id, v)| Some((id.clone(), v["tags"]["penstock:volume"].as_str()?.to_owned())))
        .collect()
}

/// What the guest does. Its identity is that of its instance's role, asked of the metadata service.
const SCRIPT: &str = r#"
export PENSTOCK_REPO=/repo/repo PENSTOCK_STATE_DIR=/state
mkdir /repo && mount -t ext4 /dev/vda /repo
# which controller had which serial at any time; by the shell itself, since every process costs
watch() {
  while :; do
    for c in /sys/class/nvme/nvme*; do read -r serial <$c/serial && echo "${c##*/} $serial"; done 2>/dev/null >>/tmp/seen
    sleep 0.2
  done
}
backup() { penstock ec2 backup --read attach --key-file /key --json "$1"; }
start lost backup $LOST
watch &
run first backup $WEB
# the second night begins when the test plugs in a drive of that name
until grep -q ^morning /sys/class/nvme/nvme*/serial; do sleep 0.3; done
run second backup $WEB
report lost
run seen sort -u /tmp/seen
run links ls -A /dev/disk
umount /repo
"#;

fn script(lab: &Lab, web: &str, lost: &str) -> String {
    let mut script = format!("export WEB={web} LOST={lost}\n");
    for (name, value) in lab.env() {
        if !["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].contains(&name) {
            writeln!(script, "export {name}='{}'", value.replace("127.0.0.1", "10.0.2.2")).unwrap();
        }
    }
    script + SCRIPT
}

/// What happens to a drive that is no volume of penstock's.
enum Other {
    Comes(Drive),
    Goes(Drive),
}

/// Plugs drives in and out as the lab says.
struct Plugger<'a> {
    lab: &'a Lab,
    /// A volume that never comes.
    lost: &'a str,
    /// What happens when the first, second, … volume is attached, before it comes itself.
    others: Vec<Other>,
    /// Serials of the volumes that were plugged in, in that order, and what they are copies of.
    plugged: Vec<(String, String)>,
    /// When each was seen first.
    seen: BTreeMap<String, Instant>,
    inside: Vec<String>,
}

impl Plugger<'_> {
    fn step(&mut self, guest: &mut Guest) {
        let now = at_proxy(self.lab);
        for (id, copy_of) in now.iter().filter(|(_, of)| *of != self.lost) {
            let Some(since) = self.seen.get(id) else {
                match self.others.get(self.seen.len()) {
                    Some(Other::Comes(drive)) => guest.plug(drive),
                    Some(Other::Goes(drive)) => guest.unplug(&drive.serial),
                    None => {}
                }
                self.seen.insert(id.clone(), Instant::now());
                continue;
            };
            if since.elapsed() > PLUG_DELAY && !self.inside.contains(id) {
                let serial = id.replace('-', "");
                let file = self.lab.volume_path(id).unwrap();
                guest.plug(&Drive { serial: serial.clone(), file });
                self.plugged.push((serial, copy_of.clone()));
                self.inside.push(id.clone());
            }
        }
        let gone: Vec<String> = self.inside.iter().filter(|id| !now.contains_key(*id)).cloned().collect();
        for id in gone {
            guest.unplug(&id.replace('-', ""));
            self.inside.retain(|inside| *inside != id);
        }
    }

    /// Until the guest has reported on `name`.
    fn work(&mut self, guest: &mut Guest, name: &str, began: Instant) -> Ran {
        loop {
            self.step(guest);
            let ended = guest.ended();
            if let Some(ran) = Ran::find(&guest.reports(), name) {
                println!("{name}: {:.0} s after the start", began.elapsed().as_secs_f64());
                return ran;
            }
            if ended || began.elapsed() > PATIENCE {
                guest.fail(&format!("nothing is known of {name}"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn volumes_are_found_by_their_serials_in_a_guest() {
    let work = Workdir::new("ec2-guest");
    std::fs::create_dir_all(work.join("lab")).unwrap();
    let lab = Lab::start(Options { devices: Devices::None, ..cloud::options(&work) }).unwrap();
    let web = machine(&lab, &work, "web-01", &[1, 2, 3]);
    let lost = machine(&lab, &work, "lost-01", &[4]);
    let cloud = Cloud { lab, web };

    let disk = work.join("repo.ext4");
    FsKind::Ext4.make(&disk, 256 * MIB);
    let mounted = work.join("mnt");
    let key = work.join("key");
    std::fs::write(&key, [7; 64]).unwrap();
    let repo = Repo::at(&mounted.join("repo"), &work.join("state"), Access::KeyFile(key.clone()));
    let mount = Mount::image(&disk, &mounted);
    repo.command(&["init"]).run().ok();
    drop(mount);

    let mut initramfs = Initramfs::new();
    initramfs.program(&work, "/bin/penstock", binary());
    initramfs.file("/key", &std::fs::read(&key).unwrap());
    let [root, first, second, third, morning] = [0, 1, 2, 3, 4].map(|number| decoy(&work, number));
    let spec = Spec {
        memory_mib: 1280,
        kernel: Some(initramfs.kernel(&work, &script(&cloud.lab, &cloud.web.instance, &lost.instance))),
        disks: vec![disk.clone()],
        drives: vec![root, first.clone(), second.clone()],
        network: true,
    };
    let began = Instant::now();
    let mut guest = Guest::start(&work.join("guest"), &spec);
    guest.wait_for("Linux version", PATIENCE);
    let mut plugger = Plugger {
        lab: &cloud.lab,
        lost: &lost.volumes[0],
        // the numbers of the controllers fall while the volumes come, and another drive of their size appears right before the first
        others: vec![Other::Comes(third), Other::Goes(second), Other::Goes(first)],
        plugged: Vec::new(),
        seen: BTreeMap::new(),
        inside: Vec::new(),
    };
    let mut nights = Vec::new();
    for (number, name) in ["first", "second"].into_iter().enumerate() {
        let done = plugger.work(&mut guest, name, began);
        assert_eq!(done.code, code::DONE, "{done:?}");
        nights.push(Night::of(&cloud, &work, &serde_json::from_str(&done.stdout).unwrap()));
        if number == 0 {
            for volume in &cloud.web.volumes {
                cloud.lab.volume_write(volume, 3 * MIB + 4096, volume.repeat(999).as_bytes()).unwrap();
            }
            guest.plug(&Drive { serial: "morning".into(), ..morning.clone() });
        }
    }
    let failed = plugger.work(&mut guest, "lost", began);
    let seen = plugger.work(&mut guest, "seen", began).stdout;
    let links = plugger.work(&mut guest, "links", began);
    guest.wait_end(PATIENCE);

    let _mount = Mount::image(&disk, &mounted);
    assert!(nights[1].report["reads"][0]["anchor"].is_string(), "{:#}", nights[1].report);
    for night in nights {
        night.check(&cloud, &repo);
    }
    repo.verify_is_clean();

    // it was as it was meant to be: each attached once a night, in any order, under controllers that say nothing of it, and nobody made links
    let plugged = plugger.plugged;
    let mut order: Vec<&str> = plugged.iter().map(|(_, of)| of.as_str()).collect();
    order.sort_unstable();
    let mut volumes: Vec<&str> =
        cloud.web.volumes.iter().chain(&cloud.web.volumes).map(String::as_str).collect();
    volumes.sort_unstable();
    assert_eq!(order, volumes);
    let controllers: Vec<&str> = plugged.iter().map(|(serial, _)| controller(&seen, serial)).collect();
    println!("controllers in the order of attaching: {controllers:?}");
    assert_ne!(links.code, 0, "there are links: {links:?}");

    // a volume that AWS calls attached and that is nowhere: nothing else is taken for it
    assert_eq!(failed.code, code::FAILED, "{failed:?}");
    let message =
        "no device with its serial appeared below /dev in 60 s: is this the instance it was attached to?\"";
    assert!(failed.stderr.contains(message), "{failed:?}");
    let marked = cloud.marked();
    assert!(marked.len() == 3 && marked.iter().all(|m| m.ends_with("anchor")), "{marked:?}");
}

/// A backup, and what the volumes held then.
struct Night {
    report: Value,
    contents: Vec<PathBuf>,
}

impl Night {
    fn of(cloud: &Cloud, work: &Workdir, reports: &Value) -> Self {
        let report = reports[0].clone();
        let keep = |volume: &String| {
            let path = work.join(&format!("{}-{volume}", json::text(&report, "recovery_point")));
            cloud.lab.volume_export(volume, &path).unwrap();
            path
        };
        Self { contents: cloud.web.volumes.iter().map(keep).collect(), report }
    }

    /// The manifests are those of plain backups of the same contents.
    fn check(&self, cloud: &Cloud, repo: &Repo) {
        let ways = json::list(&self.report, "reads");
        assert!(ways.iter().all(|read| read["way"] == "attach"), "{:#}", self.report);
        let point = repo.show(json::text(&self.report, "recovery_point"));
        let volumes = json::list(&point, "volumes");
        assert_eq!(volumes.len(), self.contents.len());
        for ((stored, volume), contents) in volumes.iter().zip(&cloud.web.volumes).zip(&self.contents) {
            assert_eq!(stored["name"], volume.as_str());
            let plain = repo.backup(contents, "plain", &["--no-parent"]);
            let root = repo.root(json::text(&plain, "recovery_point"), 0);
            assert_eq!(stored["root"], root, "{volume} has the contents of another");
        }
    }
}

/// The controller with this serial, as the guest saw it.
fn controller<'a>(seen: &'a str, serial: &str) -> &'a str {
    let line = seen.lines().find(|line| line.ends_with(serial));
    line.and_then(|line| line.split(' ').next()).unwrap_or_else(|| panic!("no {serial} in\n{seen}"))
}
