//! The command line: formats, sentences, completion, doctor, top, wait.

use std::time::{Duration, Instant};

use duet_tests::Host;
use serde_json::Value;

#[test]
fn lists_in_every_format() {
    let host = Host::new();
    host.ok("launch busybox c1 --wait=ipv4");
    host.ok("create busybox c2");
    let table = host.ok("list");
    for needle in ["NAME", "STATE", "IPV4", "c1", "RUNNING", "c2", "STOPPED", "CONTAINER"] {
        assert!(table.contains(needle), "'{needle}' is missing:\n{table}");
    }
    let csv = host.ok("list -f csv -c ns");
    assert_eq!(csv, "c1,RUNNING\nc2,STOPPED");
    let compact = host.ok("list -f compact -c ns");
    assert!(compact.contains("c1") && !compact.contains('|') && !compact.contains('+'), "{compact}");
    let json: Value = serde_json::from_str(&host.ok("list -f json")).unwrap();
    assert_eq!(json[0]["name"], "c1");
    assert_eq!(json[0]["state"]["status"], "Running");
    let yaml = host.ok("list -f yaml");
    assert!(yaml.contains("name: c1"), "{yaml}");
    host.fails("list -f nonsense", "nonsense");
    for kind in ["image list", "profile list", "network list", "storage list", "operation list", "snapshot list c1"] {
        for format in ["table", "compact", "csv", "json", "yaml"] {
            let text = host.ok(&format!("{kind} -f {format}"));
            if format == "json" {
                serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{kind}: {error}: {text}"));
            }
        }
    }
}

#[test]
fn lists_are_filtered() {
    let host = Host::new();
    host.ok("create busybox web1 -c user.tier=front");
    host.ok("create busybox web2 -c user.tier=front");
    host.ok("launch busybox db1 -c user.tier=back");
    assert_eq!(host.ok("list -f csv -c n web"), "web1\nweb2");
    assert_eq!(host.ok("list -f csv -c n status=running"), "db1");
    assert_eq!(host.ok("list -f csv -c n user.tier=front"), "web1\nweb2");
    assert_eq!(host.ok("list -f csv -c n '^db1$'"), "db1");
    assert_eq!(host.ok("list -f csv -c n nothing-like-it"), "");
}

#[test]
fn configuration_is_read_and_written() {
    let host = Host::new();
    host.ok("create busybox c1");
    host.ok("config set c1 user.a=1 user.b=2");
    assert_eq!(host.ok("config get c1 user.a"), "1");
    host.ok("config unset c1 user.a");
    assert_eq!(host.ok("config get c1 user.a"), "");
    assert!(host.ok("config show c1").contains("user.b: \"2\""));
    assert!(host.ok("config show c1 --expanded").contains("network: duetbr0"));
    host.duet("config edit c1")
        .stdin("config:\n  user.c: three\ndescription: edited\ndevices: {}\nprofiles: [default]\n")
        .run()
        .succeeded();
    assert_eq!(host.ok("config get c1 user.c"), "three");
    assert_eq!(host.get("/1.0/instances/c1")["description"], "edited");
    host.fails("config set c1 no.such.key=1", "no.such.key");
    host.fails("config edit none", "not found");
    host.ok("config set user.server=mine");
    assert_eq!(host.ok("config get user.server"), "mine");
}

#[test]
fn errors_are_one_sentence() {
    let host = Host::new();
    for (line, needle) in [
        ("launch no-such-image c1", "no-such-image"),
        ("start no-such-instance", "no-such-instance"),
        ("profile show no-such-profile", "no-such-profile"),
        ("no-such-command", "no-such-command"),
        ("launch", "usage"),
    ] {
        let output = host.fails(line, needle);
        let said = output.errors();
        if !said.to_lowercase().contains("usage") {
            assert_eq!(said.lines().count(), 1, "{line}: {said}");
            assert!(said.starts_with("Error: "), "{line}: {said}");
        }
        assert!(output.stdout.is_empty(), "{line}: {output:?}");
    }
}

#[test]
fn a_daemon_that_is_not_there_is_said_with_the_mend() {
    let host = Host::bare();
    let output = host.fails("list", "duetd");
    assert!(output.errors().contains("systemctl") || output.errors().contains("start"), "{output:?}");
    host.fails("admin waitready --timeout 1", "");
}

#[test]
fn the_folder_can_be_given() {
    let host = Host::new();
    host.ok("create busybox c1");
    let state = host.state();
    let output = host.duet(&format!("--dir {} list -f csv -c n", state.display())).env("DUET_DIR", "/nowhere").run();
    assert_eq!(output.succeeded().text(), "c1");
}

#[test]
fn completion_knows_instances_and_images() {
    let host = Host::new();
    host.ok("create busybox alpha");
    host.ok("create busybox beta");
    for shell in ["bash", "zsh", "fish"] {
        assert!(host.ok(&format!("completion {shell}")).contains("duet"), "{shell}");
    }
    // What bash would do at `duet start al<TAB>`.
    let complete = |words: &[&str]| {
        let path = host.binaries().display().to_string();
        let script = format!(
            "PATH={path}:$PATH; source <(duet completion bash); COMP_WORDS=({}); COMP_CWORD={}; COMP_LINE='{}'; \
             COMP_POINT=${{#COMP_LINE}}; COMP_TYPE=9; f=$(complete -p duet | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
             $f duet '{}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words.len() - 1,
            words.join(" "),
            words[words.len() - 1],
            words[words.len() - 2],
        );
        host.command("bash", &["-c", &script]).run().text()
    };
    let names = complete(&["duet", "start", "al"]);
    assert!(names.contains("alpha") && !names.contains("beta"), "{names}");
    let images = complete(&["duet", "launch", "bus"]);
    assert!(images.contains("busybox"), "{images}");
}

#[test]
fn help_and_manual_pages_are_there() {
    let host = Host::bare();
    let help = host.ok("--help");
    for verb in ["launch", "exec", "file", "snapshot", "image", "network", "doctor", "top", "wait"] {
        assert!(help.contains(verb), "'{verb}' is missing:\n{help}");
    }
    let folder = host.tmp().join("man");
    std::fs::create_dir(&folder).unwrap();
    host.ok(&format!("__man {}", folder.display()));
    assert!(folder.join("duet.1").exists());
    assert!(std::fs::read_dir(&folder).unwrap().count() > 20);
    assert!(
        host.ok("version").contains(env!("CARGO_PKG_VERSION"))
            || host.ok("--version").contains(env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn the_doctor_looks_at_everything() {
    let host = Host::empty();
    let output = host.duet("doctor").run();
    let text = format!("{}\n{}", output.text(), output.errors()).to_lowercase();
    for subject in ["overlay", "cgroup", "nft", "dnsmasq", "subnet", "docker", "kvm", "idmapped"] {
        assert!(text.contains(subject), "nothing of '{subject}':\n{text}");
    }
    assert!(output.code().is_some_and(|code| code < 2), "{output:?}");
}

#[test]
fn the_doctor_sees_dockers_firewall() {
    let host = Host::empty();
    host.sh("nft -f - <<E\ntable ip filter {\n chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; }\n \
             chain DOCKER-USER { }\n}\nE");
    let output = host.duet("doctor").run();
    let text = format!("{}\n{}", output.text(), output.errors());
    let line = text.lines().find(|line| line.to_lowercase().contains("docker")).unwrap_or_else(|| panic!("{text}"));
    assert!(text.contains("DOCKER-USER") || line.to_lowercase().contains("drop"), "{text}");
    host.sh("nft delete table ip filter");
}

#[test]
fn top_shows_what_runs() {
    let host = Host::new();
    host.ok("launch busybox c1");
    host.ok("launch busybox c2");
    // Without a terminal it prints once and ends.
    let output = host.duet("top").within(Duration::from_secs(30)).run().succeeded();
    let text = output.text();
    assert!(text.contains("c1") && text.contains("c2"), "{text}");
}

#[test]
fn wait_waits_and_gives_up() {
    let host = Host::new();
    host.ok("create busybox c1");
    let output = host.duet("wait c1 --for running --timeout 1").run();
    assert!(output.code().is_some_and(|code| code != 0), "{output:?}");
    assert!(output.took < Duration::from_secs(10), "{output:?}");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| host.duet("wait c1 --for running,ipv4 --timeout 60").run());
        host.ok("start c1");
        let waited = waiting.join().unwrap().succeeded();
        assert!(waited.took < Duration::from_secs(60));
    });
    let started = Instant::now();
    host.ok("wait c1 --for running,ipv4,ready --timeout 60");
    assert!(started.elapsed() < Duration::from_secs(30));
    host.fails("wait c1 --for sunshine", "sunshine");
    host.fails("wait none --for running", "not found");
}

#[test]
fn a_wait_ends_early_when_it_has_become_pointless() {
    let host = Host::new();
    host.ok("create busybox c2");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| host.duet("wait c2 --for ipv4 --timeout 60").run());
        duet_tests::eventually("the wait being under way", || {
            host.processes()
                .into_iter()
                .find(|pid| duet_tests::processes::command_line(*pid).iter().any(|word| word == "wait"))
        });
        host.ok("delete c2");
        let waited = waiting.join().unwrap();
        assert!(waited.code().is_some_and(|code| code != 0), "{waited:?}");
        assert!(waited.took < Duration::from_secs(50), "it waited for what is gone: {waited:?}");
    });
}

#[test]
fn monitor_prints_events() {
    let host = Host::new();
    let mut child = host.duet("monitor --type lifecycle --format json").spawn();
    let mut reader = std::io::BufReader::new(child.stdout.take().unwrap());
    host.ok("create busybox c1");
    // The listener may have come too late for the first event: go on until one was seen.
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        while std::io::BufRead::read_line(&mut reader, &mut line).is_ok_and(|count| count > 0) {
            if sender.send(std::mem::take(&mut line)).is_err() {
                return;
            }
        }
    });
    let line = duet_tests::eventually("an event", || {
        host.ok("config set c1 user.x=y");
        host.ok("config unset c1 user.x");
        receiver.recv_timeout(Duration::from_millis(500)).ok()
    });
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event["type"], "lifecycle");
    child.kill().unwrap();
    child.wait().unwrap();
}
