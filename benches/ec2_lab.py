"""The lab with an instance named `web` of some images, and penstock on it: what the benches of EC2 share."""
import json, os, subprocess, time, urllib.request

work, images, binary, lab = (os.environ[n] for n in ("work", "images", "bin", "lab"))
MIB = 1 << 20


class Lab:
    def __init__(self, name, *options):
        self.root = f"{work}/{name}"
        os.mkdir(self.root)
        with open(f"{self.root}/scenario.json", "w") as file:
            json.dump({"instances": [{"name": "web", "volumes": [{"file": f"{images}/day1.img"}]}]}, file)
        args = [lab, "--scenario", f"{self.root}/scenario.json", "--root", f"{self.root}/lab", *options]
        os.mkdir(f"{self.root}/lab")
        self.process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        said = json.loads(self.process.stdout.readline())
        self.url = said["endpoint"]
        env = said["env"].items() if isinstance(said["env"], dict) else said["env"]
        self.env = {**os.environ, **dict(env), "PENSTOCK_EC2_DEV": said["dev"], "PENSTOCK_EC2_SYS": said["sys"],
                    "PENSTOCK_STATE_DIR": f"{self.root}/state", "PENSTOCK_REPO": f"{self.root}/repo", "PENSTOCK_PASSWORD": "nights"}
        region = self.ask("GET", "/lab/state")["us-east-1"]
        self.web = next(i for i, v in region["instances"].items() if v["tags"].get("Name") == "web")
        self.volume = next(i for i, v in region["volumes"].items() if (v["attachment"] or {}).get("instance_id") == self.web)

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        text = urllib.request.urlopen(request).read()
        return json.loads(text) if text.strip() else None

    def run(self, *args):
        out = subprocess.run([binary, "-q", "--json", *args], env=self.env, check=True, stdout=subprocess.PIPE).stdout
        return json.loads(out)

    def timed(self, *args):
        """The report of a command, with what it took and how the lab was called."""
        self.ask("DELETE", "/lab/calls")
        from_s, lab_s = time.time(), self.cpu_s()
        report = self.run(*args)
        report = report[0] if isinstance(report, list) else report
        report["lab_cpu_s"] = self.cpu_s() - lab_s
        report["wall_s"] = time.time() - from_s
        counts = self.ask("GET", "/lab/counts")
        calls = counts.get("counts", counts)
        for name, call in (("gets", "GetSnapshotBlock"), ("puts", "PutSnapshotBlock")):
            report[name] = calls.get(call, {}).get("ok", 0)
        report["throttled"] = sum(c.get("throttled", 0) for c in calls.values() if isinstance(c, dict))
        return report

    def cpu_s(self):
        """CPU seconds of the lab."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            return sum(map(int, file.read().split()[13:15])) / os.sysconf("SC_CLK_TCK")

    def backup(self, way, *more):
        return self.timed("ec2", "backup", self.web, "--read", way, *more)

    def restore(self, point, way, *more):
        return self.timed("ec2", "restore", point, "--write", way, "--volumes-only", *more)

    def load(self, image):
        """What the volume holds from now on."""
        self.ask("POST", f"/lab/volumes/{self.volume}/load?file={image}")

    def end(self):
        self.process.terminate()
        self.process.wait()


def changed():
    """MiB of blocks of 512 KiB that differ between the two days."""
    with open(f"{images}/day1.img", "rb") as a, open(f"{images}/day2.img", "rb") as b:
        count = 0
        while one := a.read(MIB // 2):
            count += one != b.read(MIB // 2)
        return count / 2
