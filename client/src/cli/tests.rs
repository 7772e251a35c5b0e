//! Command lines as people write them for Incus, and what becomes of them.

use clap::{CommandFactory as _, Parser as _};

use super::Cli;

fn parses(line: &str) -> bool {
    let words = shell_words(line);
    Cli::try_parse_from(&words).is_ok()
}

/// Splits at spaces; single quotes keep them.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn incus_command_lines_are_understood() {
    for line in [
        "duet version",
        "duet list",
        "duet ls -f csv -c n",
        "duet list web status=running -c ns4,user.owner --format=json",
        "duet list --fast --all-projects",
        "duet info c1 --show-log",
        "duet info --resources",
        "duet launch debian/13 c1",
        "duet launch local:debian/13 local:c1 -c limits.cpu=2 -d root,size=10GiB -p default -p web -e",
        "duet launch tiny c1 --no-profiles -n br0 -s pool1 --description 'a b' --wait=ipv4,ready",
        "duet init tiny c1",
        "duet create --empty c5",
        "duet init --empty v1 --vm",
        "duet start c1 c2 --console",
        "duet stop c1 -f --timeout 30",
        "duet stop --all --timeout=-1",
        "duet restart c1 --force",
        "duet pause c1",
        "duet resume --all",
        "duet delete -f -i c1 c2/s0",
        "duet rm c1",
        "duet rename c1 c2",
        "duet move c1 c2",
        "duet mv c1 c2",
        "duet copy c1/s0 c2 --instance-only -e -p p1 -c a.b=c -d root,size=1GiB -s default",
        "duet exec c1 -- ls -l -t",
        "duet exec c1 -t --cwd /tmp --env A=b --user 1000 --group 1000 -- bash",
        "duet exec -T c1 ls",
        "duet exec c1 -n --mode=non-interactive true",
        "duet shell c1",
        "duet console c1 --show-log",
        "duet console c1 --type console --force",
        "duet file push -r -p a b c1/root/ ",
        "duet file push --mode 0644 --uid 0 --gid 0 a c1/root/a",
        "duet file pull -r c1/etc .",
        "duet file delete c1/x",
        "duet file create --type=symlink c1/x y",
        "duet file mkdir -p c1/a/b",
        "duet file edit c1/a",
        "duet config get c1 limits.cpu",
        "duet config get core.https_address",
        "duet config get c1 --expanded limits.cpu",
        "duet config set c1 limits.cpu=2 limits.memory=1GiB",
        "duet config set c1 limits.cpu 2",
        "duet config set core.x 1",
        "duet config unset c1 limits.cpu",
        "duet config show c1 --expanded",
        "duet config show",
        "duet config edit",
        "duet config device add c1 data disk source=/srv path=/srv",
        "duet config device override c1 root size=5GiB",
        "duet config device list c1",
        "duet config device remove c1 a b",
        "duet config metadata show c1",
        "duet config template list c1",
        "duet snapshot create c1",
        "duet snapshot create c1 s0 --reuse --no-expiry",
        "duet snapshot list c1 -f yaml",
        "duet snapshot restore c1 s0",
        "duet snapshot rename c1 s0 s1",
        "duet snapshot delete c1 s1 s2",
        "duet profile device add default eth0 nic network=br0 name=eth0",
        "duet profile assign c1 default,web",
        "duet profile apply c1 default",
        "duet profile edit default",
        "duet image build debian/13 --alias d13",
        "duet image import a.tar.gz --alias x os=y",
        "duet image import meta.tar.gz root.squashfs --alias x",
        "duet image export x /tmp/y",
        "duet image alias create a b",
        "duet image list -c lf os=debian",
        "duet publish c1/s0 --alias x --compression zstd a=b",
        "duet network create br0 ipv4.address=10.1.1.1/24 --type=bridge",
        "duet network attach br0 c1 eth1 eth1",
        "duet network list-leases br0",
        "duet storage create p2 overlay source=/x",
        "duet storage info default --bytes",
        "duet operation cancel x",
        "duet monitor --type=lifecycle --type=operation --pretty",
        "duet query -X POST -d '{\"a\": 1}' --wait --raw /1.0/instances",
        "duet warning ack x",
        "duet warning delete --all",
        "duet project list",
        "duet admin waitready --timeout=30",
        "duet admin init --dump",
        "duet admin init --auto",
        "duet cluster list",
        "duet wait c1 --for running,ipv4,ready --timeout -1",
        "duet top -n 1 -s memory",
        "duet --dir /tmp/x -q list",
        "duet list -q --project default --debug",
        "duet completion zsh",
        "duet doctor",
    ] {
        assert!(parses(line.trim_end()), "{line}");
    }
}

#[test]
fn mistakes_are_not() {
    for line in [
        "duet frobnicate",
        "duet exec c1",
        "duet list -f xml",
        "duet launch x c1 -c novalue",
        "duet launch x c1 -d root",
        "duet file push a",
        "duet file push --mode 999 a c1/a",
        "duet wait c1 --for sunrise",
        "duet admin init",
        "duet admin init --dump --preseed",
        "duet exec -t -T c1 ls",
        "duet query -X 'BAD METHOD' /1.0",
    ] {
        assert!(!parses(line), "{line}");
    }
}

#[test]
fn words_after_the_command_belong_to_it() {
    let cli = Cli::try_parse_from(["duet", "exec", "c1", "ls", "-t", "--user", "x"]).unwrap();
    let text = format!("{:?}", cli.command);
    assert!(text.contains(r#"command: ["ls", "-t", "--user", "x"]"#), "{text}");
    let cli = Cli::try_parse_from(["duet", "exec", "c1", "-t", "--", "ls", "-T"]).unwrap();
    let text = format!("{:?}", cli.command);
    assert!(text.contains(r#"command: ["ls", "-T"]"#) && text.contains("force_interactive: true"), "{text}");
}
