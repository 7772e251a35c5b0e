//! Control groups and usage on the real kernel, in trees of the test's own.

mod support;
#[path = "support/trees.rs"]
mod trees;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use duet_container::cgroup::{
    Cgroup, CgroupError, Controller, CpuAllowance, CreateOptions, DevicePolicy, Limits, MemoryLimit, Place, Swap,
};
use duet_container::stats::Reader;
use support::{deadline, eventually};
use trees::{Member, Trees};

const MIB: u64 = 1024 * 1024;

fn create(trees: &Trees, name: &str, limits: Limits) -> Cgroup {
    Cgroup::create(&trees.layout, name, &CreateOptions { limits, ..CreateOptions::default() }).unwrap()
}

fn file(cgroup: &Cgroup, controller: Controller, v1: &str, v2: &str) -> String {
    let path: PathBuf = match cgroup.dir_of(controller).unwrap() {
        Place::V1(dir) => dir.join(v1),
        Place::V2(dir) => dir.join(v2),
    };
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

#[test]
fn create_limit_unlimit_destroy() {
    let trees = Trees::new();
    let limits = Limits {
        cpus: Some("0".parse().unwrap()),
        cpu_allowance: Some(CpuAllowance::Quota { quota_us: 25_000, period_us: 50_000 }),
        cpu_priority: Some(7),
        memory: Some(MemoryLimit::Hard(64 * MIB)),
        swap: Swap::Denied,
        processes: Some(100),
        ..Limits::default()
    };
    let options = CreateOptions { owner: (100_000, 100_001), limits, ..CreateOptions::default() };
    let cgroup = Cgroup::create(&trees.layout, "duet/c1", &options).unwrap();
    let v1 = matches!(cgroup.dir_of(Controller::Cpu).unwrap(), Place::V1(_));

    assert_eq!(file(&cgroup, Controller::Cpuset, "cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(file(&cgroup, Controller::Memory, "memory.limit_in_bytes", "memory.max"), (64 * MIB).to_string());
    assert_eq!(file(&cgroup, Controller::Memory, "memory.swappiness", "memory.swap.max"), "0");
    assert_eq!(file(&cgroup, Controller::Pids, "pids.max", "pids.max"), "100");
    if v1 {
        assert_eq!(file(&cgroup, Controller::Cpu, "cpu.shares", ""), "1021");
        assert_eq!(file(&cgroup, Controller::Cpu, "cpu.cfs_quota_us", ""), "25000");
        assert_eq!(file(&cgroup, Controller::Cpu, "cpu.cfs_period_us", ""), "50000");
        assert_eq!(file(&cgroup, Controller::Memory, "memory.memsw.limit_in_bytes", ""), (64 * MIB).to_string());
    } else {
        assert_eq!(file(&cgroup, Controller::Cpu, "", "cpu.weight"), "97");
        assert_eq!(file(&cgroup, Controller::Cpu, "", "cpu.max"), "25000 50000");
    }

    let payload = cgroup.unified().join("payload");
    for name in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
        let meta = fs::metadata(payload.join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (100_000, 100_001), "{name}");
    }
    for path in [cgroup.unified(), payload.join("cgroup.type"), cgroup.unified().join("cgroup.procs")] {
        assert_eq!(fs::metadata(&path).unwrap().uid(), 0, "{}", path.display());
    }

    let usage = Reader::open(&cgroup).unwrap().read().unwrap();
    assert_eq!(usage.cpu.allocated_ns, 500_000_000);
    assert_eq!(usage.memory.unwrap().total, 64 * MIB);

    cgroup.apply(&Limits::default()).unwrap();
    let whole = trees.layout.available_cpus().unwrap().to_string();
    let usage = Reader::open(&cgroup).unwrap().read().unwrap();
    assert_eq!(usage.cpu.allocated_ns, trees.layout.available_cpus().unwrap().len() as u64 * 1_000_000_000);
    assert!(usage.memory.unwrap().total > 64 * MIB);
    assert_eq!(file(&cgroup, Controller::Pids, "pids.max", "pids.max"), "max");
    if v1 {
        assert_eq!(file(&cgroup, Controller::Cpuset, "cpuset.cpus", ""), whole);
        assert_eq!(file(&cgroup, Controller::Cpu, "cpu.shares", ""), "1024");
        assert_eq!(file(&cgroup, Controller::Cpu, "cpu.cfs_quota_us", ""), "-1");
        assert_ne!(file(&cgroup, Controller::Memory, "memory.swappiness", ""), "0");
        assert_eq!(
            file(&cgroup, Controller::Memory, "memory.memsw.limit_in_bytes", ""),
            file(&cgroup, Controller::Memory, "memory.limit_in_bytes", "")
        );
    } else {
        assert_eq!(file(&cgroup, Controller::Cpuset, "", "cpuset.cpus"), "");
        assert_eq!(file(&cgroup, Controller::Memory, "", "memory.max"), "max");
        assert_eq!(file(&cgroup, Controller::Memory, "", "memory.swap.max"), "max");
        assert_eq!(file(&cgroup, Controller::Cpu, "", "cpu.max"), "max 100000");
    }

    // Both ways through soft limits and swap of a size, each in the order that the kernel demands.
    for limits in [
        Limits { memory: Some(MemoryLimit::Hard(32 * MIB)), swap: Swap::Bytes(8 * MIB), ..Limits::default() },
        Limits { memory: Some(MemoryLimit::Hard(512 * MIB)), swap: Swap::Bytes(MIB), ..Limits::default() },
        Limits { memory: Some(MemoryLimit::Soft(16 * MIB)), ..Limits::default() },
        Limits { memory: Some(MemoryLimit::Hard(16 * MIB)), swap: Swap::Denied, ..Limits::default() },
    ] {
        cgroup.apply(&limits).unwrap();
    }

    assert_eq!(Cgroup::list(&trees.layout, "duet").unwrap(), ["duet/c1"]);
    cgroup.destroy(deadline()).unwrap();
    cgroup.destroy(deadline()).unwrap();
    assert!(Cgroup::list(&trees.layout, "duet").unwrap().is_empty());
    assert!(Cgroup::list(&trees.layout, "duet-none").unwrap().is_empty());
    assert!(!trees.groups().iter().any(|group| group.ends_with("c1")));
}

#[test]
fn a_scope_holds_the_monitor_beside_the_container() {
    let trees = Trees::new();
    // What systemd makes: the slice and the unit's group, with all controllers that it knows, and a process in it.
    let root = trees.layout.unified().to_owned();
    let (slice, scope) = (root.join("duet.slice"), root.join("duet.slice/duet-c1.scope"));
    fs::create_dir_all(&scope).unwrap();
    for dir in [&root, &slice] {
        let offered = fs::read_to_string(dir.join("cgroup.controllers")).unwrap();
        for controller in offered.split_whitespace().filter(|name| *name != "hugetlb") {
            fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
        }
    }
    let mut monitor = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    fs::write(scope.join("cgroup.procs"), monitor.id().to_string()).unwrap();

    let options = CreateOptions { monitor: Some(monitor.id()), ..CreateOptions::default() };
    let cgroup = Cgroup::create(&trees.layout, "duet.slice/duet-c1.scope", &options).unwrap();
    assert!(cgroup.is_scope());
    assert_eq!(cgroup.unified(), scope.join("container"));
    let members = |group: &str| fs::read_to_string(scope.join(group).join("cgroup.procs")).unwrap();
    assert_eq!(members(""), "");
    assert_eq!(members("monitor").trim(), monitor.id().to_string());
    assert_eq!(
        fs::read_to_string(cgroup.unified().join("payload/cgroup.controllers")).unwrap(),
        fs::read_to_string(scope.join("cgroup.controllers")).unwrap()
    );
    // A kill of the container is none of the monitor, which reports it.
    let mut member = Member::new(&cgroup, "sleep 60");
    cgroup.kill().unwrap();
    assert!(!member.wait().success());
    assert_eq!(monitor.try_wait().unwrap(), None);

    cgroup.destroy(deadline()).unwrap();
    assert!(!monitor.wait().unwrap().success());
    assert!(!cgroup.exists());
    cgroup.destroy(deadline()).unwrap();
}

#[test]
fn leftovers_are_replaced_and_the_living_kept() {
    let trees = Trees::new();
    let first = create(&trees, "duet/c1", Limits { processes: Some(3), ..Limits::default() });
    fs::create_dir_all(first.unified().join("payload/left/over")).unwrap();
    let again = create(&trees, "duet/c1", Limits::default());
    assert_eq!(file(&again, Controller::Pids, "pids.max", "pids.max"), "max");
    assert!(!again.unified().join("payload/left").exists());

    let mut member = Member::new(&again, "sleep 100");
    let refused = Cgroup::create(&trees.layout, "duet/c1", &CreateOptions::default()).unwrap_err();
    assert!(matches!(refused, CgroupError::InUse { .. }), "{refused}");
    assert!(member.0.try_wait().unwrap().is_none());
    again.destroy(deadline()).unwrap();
    assert!(!member.wait().success());
}

#[test]
fn freeze_thaw_kill() {
    let trees = Trees::new();
    let cgroup = create(&trees, "duet/c1", Limits::default());
    let mut member = Member::new(&cgroup, "sleep 1000 & while read word; do echo got $word; done");
    assert!(cgroup.is_populated().unwrap());
    assert!(!cgroup.is_frozen().unwrap());

    cgroup.freeze(deadline()).unwrap();
    assert!(cgroup.is_frozen().unwrap());
    use std::io::Write;
    writeln!(member.0.stdin.as_mut().unwrap(), "one").unwrap();
    let frozen = Reader::open(&cgroup).unwrap();
    let before = frozen.read().unwrap().cpu.used_ns;
    assert_eq!(frozen.read().unwrap().cpu.used_ns, before, "frozen, and yet it runs");
    cgroup.thaw(deadline()).unwrap();
    assert_eq!(member.line(), "got one");

    // What is frozen can be killed, and waited for.
    cgroup.freeze(deadline()).unwrap();
    cgroup.kill().unwrap();
    cgroup.wait_empty(deadline()).unwrap();
    assert!(!cgroup.is_populated().unwrap());
    let late = Instant::now();
    let other = create(&trees, "duet/c2", Limits::default());
    let _living = Member::new(&other, "sleep 1000");
    let timeout = other.wait_empty(late + Duration::from_millis(20)).unwrap_err();
    assert!(matches!(timeout, CgroupError::Timeout { .. }), "{timeout}");
    for cgroup in [cgroup, other] {
        cgroup.destroy(deadline()).unwrap();
        assert!(!cgroup.exists());
    }
}

#[test]
fn destroy_takes_whatever_was_nested() {
    let trees = Trees::new();
    let cgroup = create(&trees, "duet/c1", Limits::default());
    let payload = cgroup.unified().join("payload");
    let mut deep = payload.clone();
    for _ in 0..200 {
        deep.push("d");
        fs::create_dir(&deep).unwrap();
    }
    for at in 0..50 {
        let wide = payload.join(format!("w{at}"));
        fs::create_dir_all(wide.join("x/y")).unwrap();
    }
    let script = format!(
        "sleep 1000 & echo $! > {0}/cgroup.procs; echo $$ > {1}/w7/x/cgroup.procs; echo moved; sleep 1000",
        deep.display(),
        payload.display()
    );
    let mut member = Member::new(&cgroup, &script);
    assert_eq!(member.line(), "moved");
    cgroup.destroy(deadline()).unwrap();
    assert!(!trees.groups().iter().any(|group| group.ends_with("c1")));
}

#[test]
fn limits_bite_and_are_counted() {
    let trees = Trees::new();
    let limits = Limits { memory: Some(MemoryLimit::Hard(32 * MIB)), swap: Swap::Denied, ..Limits::default() };
    let cgroup = create(&trees, "duet/c1", limits);
    let reader = Reader::open(&cgroup).unwrap();
    let mut member = Member::new(&cgroup, "dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null; echo $?");
    assert_eq!(member.line(), "137", "dd should have been killed");
    member.wait();
    eventually("the kill is counted", || reader.read().unwrap().memory.unwrap().oom_kills == 1);
    assert!(reader.read().unwrap().memory.unwrap().peak.is_none_or(|peak| peak > 16 * MIB));

    // Page cache isn't in use, anonymous memory is.
    cgroup.apply(&Limits::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let big = folder.path().join("big");
    let script = format!("dd if=/dev/zero of={} bs=1M count=40 2>/dev/null; echo written; read go", big.display());
    let mut member = Member::new(&cgroup, &script);
    assert_eq!(member.line(), "written");
    let memory = reader.read().unwrap().memory.unwrap();
    assert!(memory.cache > 30 * MIB && memory.used < 20 * MIB, "{memory:?}");
    drop(member);

    let mut member =
        Member::new(&cgroup, "exec perl -e '$| = 1; my $x = \"x\" x (60 << 20); print \"held\\n\"; <STDIN>'");
    assert_eq!(member.line(), "held");
    let usage = reader.read().unwrap();
    assert!(usage.memory.as_ref().is_some_and(|memory| memory.used > 55 * MIB), "{usage:?}");
    assert_eq!(usage.processes, 1);
    assert!(usage.cpu.used_ns > 0);
    if matches!(cgroup.dir_of(Controller::Memory).unwrap(), Place::V1(_)) {
        // Nothing to swap to or to drop: version 1 refuses.
        let limits = Limits { memory: Some(MemoryLimit::Hard(8 * MIB)), swap: Swap::Denied, ..Limits::default() };
        let refused = cgroup.apply(&limits).unwrap_err();
        assert!(matches!(refused, CgroupError::MemoryInUse { bytes, .. } if bytes == 8 * MIB), "{refused}");
    }
    drop(member);

    cgroup.apply(&Limits { processes: Some(2), cpus: Some("1".parse().unwrap()), ..Limits::default() }).unwrap();
    let forks = "my $n = 0; while (defined(my $pid = fork)) { sleep 1000 if !$pid; $n++ } print \"$n\\n\"";
    let mut member = Member::new(&cgroup, &format!("nproc; exec perl -e '{forks}'"));
    assert_eq!(member.line(), "1");
    assert_eq!(member.line(), "1", "perl and one child");
    drop(member);
    cgroup.destroy(deadline()).unwrap();
    assert!(reader.read().is_err());
}

#[test]
fn exec_joins_a_leaf_once_the_payload_hands_controllers_on() {
    let trees = Trees::new();
    let cgroup = create(&trees, "duet/c1", Limits::default());
    let payload = fs::metadata(cgroup.unified().join("payload")).unwrap().ino();
    let inode = || fs::File::from(cgroup.exec_fd((7, 8)).unwrap()).metadata().unwrap().ino();
    assert_eq!(inode(), payload);

    let group = cgroup.unified();
    let root = group.parent().unwrap().parent().unwrap().to_owned();
    let Some(controller) =
        fs::read_to_string(root.join("cgroup.controllers")).unwrap().split(' ').next().map(str::to_owned)
    else {
        return;
    };
    fs::create_dir(group.join("payload/init.scope")).unwrap();
    for dir in [root, group.parent().unwrap().to_owned(), group.clone(), group.join("payload")] {
        fs::write(dir.join("cgroup.subtree_control"), format!("+{}", controller.trim())).unwrap();
    }
    let leaf = inode();
    assert_ne!(leaf, payload);
    assert_eq!(inode(), leaf);
    assert_eq!(fs::metadata(group.join("payload/.duet-exec/cgroup.procs")).unwrap().uid(), 7);
    cgroup.destroy(deadline()).unwrap();
}

#[test]
fn device_policy_holds_and_can_be_replaced() {
    let trees = Trees::new();
    let options = CreateOptions { devices: Some(DevicePolicy::default()), ..CreateOptions::default() };
    let cgroup = Cgroup::create(&trees.layout, "duet/c1", &options).unwrap();
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let node = folder.path().join("kmsg");
    // Making any node is allowed, opening only those listed. kmsg (1:11) isn't.
    let script = format!(
        "cd {}; mknod kmsg c 1 11 && echo made; cat /dev/null && echo null; while read word; do \
         (exec 3<kmsg) 2>/dev/null && echo open || echo denied; (exec 4>kmsg) 2>/dev/null && echo open || echo denied; done",
        folder.path().display()
    );
    let mut member = Member::new(&cgroup, &script);
    assert_eq!((member.line(), member.line()), ("made".to_owned(), "null".to_owned()));
    assert!(node.exists());
    let answers = |member: &mut Member| {
        use std::io::Write;
        writeln!(member.0.stdin.as_mut().unwrap(), "go").unwrap();
        (member.line(), member.line())
    };
    let denied = || "denied".to_owned();
    assert_eq!(answers(&mut member), (denied(), denied()));
    cgroup.set_devices(&DevicePolicy::default().allow("c 1:11 r".parse().unwrap())).unwrap();
    assert_eq!(answers(&mut member), ("open".to_owned(), denied()));
    cgroup.set_devices(&DevicePolicy::default()).unwrap();
    assert_eq!(answers(&mut member), (denied(), denied()));
    drop(member);
    cgroup.destroy(deadline()).unwrap();
}
