//! Other firewalls on the host that would cut instances off, and the way past them.
//!
//! In nftables a packet must get past every table: what Duet's own table accepts, another one may still drop. So
//! the host's rules are read, never changed, and for each chain on the `forward` and `input` hooks that lets
//! nothing through by itself it is asked whether some rule speaks for the bridge. Docker, ufw and firewalld are
//! recognised by the names of their chains and tables, since each leaves room for such a rule in its own way.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Check, Step, programs, read};

const NAME: &str = "firewall";

pub(super) fn checks(bridges: &[String]) -> Vec<Check> {
    let found = in_the_way(bridges);
    if found.is_empty() {
        let bridges = bridges.join(", ");
        return vec![Check::ok(NAME, format!("nothing of Docker, ufw, firewalld or others cuts {bridges} off"))];
    }
    found.into_iter().map(|(_, check)| check).collect()
}

/// What cuts instances on these bridges off, each with the bridge that it is about. Blocks for a fraction of a second,
/// and finds nothing without root or nft.
#[must_use]
pub fn in_the_way(bridges: &[String]) -> Vec<(String, Check)> {
    let text = programs::find("nft").and_then(|nft| output(&nft, &["-j", "list", "ruleset"]));
    let ruleset: Value = text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let older = legacy_rules();
    let mut checks = Vec::new();
    for bridge in bridges {
        let mut findings = judge(&ruleset, bridge);
        findings.extend(older.iter().flat_map(|(text, only_v6)| judge_legacy(text, bridge, *only_v6)));
        checks.extend(findings.iter().map(|finding| (bridge.clone(), finding.check(bridge))));
    }
    checks
}

fn output(program: &std::path::Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whose rules they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Maker {
    Docker,
    Ufw,
    Firewalld,
    Unknown,
}

/// Which packets are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hook {
    /// Those that instances send to and get from elsewhere.
    Forward,
    /// Those to the host itself: DHCP and DNS.
    Input,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    maker: Maker,
    hook: Hook,
    /// `ip filter FORWARD`, or how else the chain is called.
    place: String,
    /// Whether it is about IPv6 only.
    only_v6: bool,
    /// Whether the rules are of the older kind, which nft does not know.
    legacy: bool,
}

impl Finding {
    fn check(&self, bridge: &str) -> Check {
        let whose = match self.maker {
            Maker::Docker => "Docker's firewall",
            Maker::Ufw => "ufw",
            Maker::Firewalld => "firewalld",
            Maker::Unknown => "a firewall",
        };
        let what = match self.hook {
            Hook::Forward => "what instances send and receive",
            Hook::Input => "instances' requests for addresses and names",
        };
        let message = format!("{whose} drops {what} on {bridge} (chain {})", self.place);
        let steps = self.steps(bridge);
        let commands: Vec<String> = steps.iter().filter_map(Step::command).collect();
        let mend = if commands.is_empty() { self.advice(bridge) } else { commands.join("\n") };
        Check { fix: steps, ..Check::warn(NAME, message, mend) }
    }

    /// What mends it, where its maker leaves room.
    fn steps(&self, bridge: &str) -> Vec<Step> {
        match (self.maker, self.hook) {
            (Maker::Docker, Hook::Forward) => self.past_docker(bridge),
            // What is an answer ufw lets pass by itself. It keeps its rules.
            (Maker::Ufw, Hook::Forward) => vec![Step::run(&["ufw", "route", "allow", "in", "on", bridge])],
            (Maker::Ufw, Hook::Input) => vec![Step::run(&["ufw", "allow", "in", "on", bridge])],
            (Maker::Firewalld, _) => {
                let interface = format!("--add-interface={bridge}");
                vec![
                    Step::run(&["firewall-cmd", "--permanent", "--zone=trusted", &interface]),
                    Step::run(&["firewall-cmd", "--reload"]),
                ]
            }
            _ => Vec::new(),
        }
    }

    /// Docker asks its chain DOCKER-USER first and leaves what is in it alone, also when it starts again; but it is
    /// gone when the host does. Docker's unit then puts it back.
    fn past_docker(&self, bridge: &str) -> Vec<Step> {
        let tables = match (self.only_v6, self.legacy) {
            (false, false) => "iptables",
            (true, false) => "ip6tables",
            (false, true) => "iptables-legacy",
            (true, true) => "ip6tables-legacy",
        };
        let rules = [
            vec!["-i", bridge, "-j", "ACCEPT"],
            vec!["-o", bridge, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"],
        ];
        let mut steps: Vec<Step> =
            rules.iter().map(|rule| Step::run(&[&[tables, "-I", "DOCKER-USER"], rule.as_slice()].concat())).collect();
        let units = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
        let has_unit = units.iter().any(|dir| std::path::Path::new(dir).join("docker.service").exists());
        if has_unit && std::path::Path::new("/run/systemd/system").is_dir() {
            let mut text =
                "# By \"duet doctor --fix\": Docker drops what DOCKER-USER does not accept.\n[Service]\n".to_owned();
            for rule in rules.map(|rule| rule.join(" ")) {
                text.push_str(&format!(
                    "ExecStartPost=-/bin/sh -c \"{tables} -C DOCKER-USER {rule} 2>/dev/null || {tables} -I DOCKER-USER {rule}\"\n"
                ));
            }
            let path = format!("/etc/systemd/system/docker.service.d/duet-{bridge}-{tables}.conf");
            steps.push(Step::Write { path: path.into(), text });
            steps.push(Step::run(&["systemctl", "daemon-reload"]));
        }
        steps
    }

    /// What to do where only the admin knows the place.
    fn advice(&self, bridge: &str) -> String {
        match self.hook {
            Hook::Forward => format!("let the chain {} accept packets from and to {bridge}", self.place),
            Hook::Input => {
                format!("let the chain {} accept UDP 53, 67 and 547 and TCP 53 from {bridge}", self.place)
            }
        }
    }
}

/// One chain of the rule set.
struct Chain<'a> {
    family: &'a str,
    table: &'a str,
    name: &'a str,
    value: &'a Value,
}

struct Ruleset<'a> {
    chains: Vec<Chain<'a>>,
    rules: Vec<&'a Value>,
}

/// Judges the answer of `nft -j list ruleset` (libnftables-json(5)).
fn judge(ruleset: &Value, bridge: &str) -> Vec<Finding> {
    let objects = ruleset["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &'_ Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let chains = objects.iter().filter_map(|object| object.get("chain"));
    let set = Ruleset {
        chains: chains
            .filter_map(|value| {
                let field = |key: &str| value[key].as_str();
                Some(Chain { family: field("family")?, table: field("table")?, name: field("name")?, value })
            })
            .collect(),
        rules: objects.iter().filter_map(|object| object.get("rule")).collect(),
    };
    let mut findings = Vec::new();
    for chain in &set.chains {
        let hook = match chain.value["hook"].as_str() {
            Some("forward") => Hook::Forward,
            Some("input") => Hook::Input,
            _ => continue,
        };
        if !matches!(chain.family, "ip" | "ip6" | "inet") || chain.table == "duet" {
            continue;
        }
        let reachable = set.reachable(chain);
        if !set.is_closed(chain) || set.speaks_for(chain, &reachable, bridge) {
            continue;
        }
        findings.push(Finding {
            maker: set.maker(chain, hook, &reachable),
            hook,
            place: format!("{} {} {}", chain.family, chain.table, text(chain.value, "name")),
            only_v6: chain.family == "ip6",
            legacy: false,
        });
    }
    findings
}

impl<'a> Ruleset<'a> {
    fn rules_of(&self, chain: &Chain<'_>, name: &str) -> impl Iterator<Item = &'a [Value]> {
        let (family, table, name) = (chain.family.to_owned(), chain.table.to_owned(), name.to_owned());
        let rules = self.rules.clone();
        rules.into_iter().filter_map(move |rule| {
            let here =
                rule["family"] == family.as_str() && rule["table"] == table.as_str() && rule["chain"] == name.as_str();
            rule["expr"].as_array().filter(|_| here).map(Vec::as_slice)
        })
    }

    /// The chain and those that its rules jump to, directly or not.
    fn reachable(&self, chain: &Chain<'_>) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![chain.name.to_owned()];
        while let Some(name) = todo.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            for expression in self.rules_of(chain, &name).flatten() {
                for jump in ["jump", "goto"] {
                    if let Some(target) = expression[jump]["target"].as_str() {
                        todo.push(target.to_owned());
                    }
                }
            }
        }
        seen
    }

    /// Whether what no rule accepts is dropped: by the chain's policy, or by a last rule without condition.
    fn is_closed(&self, chain: &Chain<'_>) -> bool {
        let refuses = |expressions: &[Value]| {
            let conditions = expressions.iter().any(|e| e.get("match").is_some() || e.get("xt").is_some());
            !conditions && expressions.iter().any(|e| e.get("drop").is_some() || e.get("reject").is_some())
        };
        chain.value["policy"] == "drop" || self.rules_of(chain, chain.name).any(refuses)
    }

    /// Whether some reachable rule names the bridge as the link that packets come from, and does not refuse them.
    fn speaks_for(&self, chain: &Chain<'_>, reachable: &BTreeSet<String>, bridge: &str) -> bool {
        let allows = |expressions: &[Value]| {
            expressions.iter().any(|e| comes_from(e, bridge))
                && !expressions.iter().any(|e| e.get("drop").is_some() || e.get("reject").is_some())
                && expressions.iter().any(|e| ["accept", "jump", "goto"].iter().any(|verdict| e.get(verdict).is_some()))
        };
        reachable.iter().any(|name| self.rules_of(chain, name).any(allows))
    }

    fn maker(&self, chain: &Chain<'_>, hook: Hook, reachable: &BTreeSet<String>) -> Maker {
        let begins = |prefix: &str| reachable.iter().any(|name| name.starts_with(prefix));
        match hook {
            _ if chain.table == "firewalld" => Maker::Firewalld,
            // Docker's chain is asked before ufw's rules, so what it accepts is accepted for both.
            Hook::Forward if reachable.contains("DOCKER-USER") => Maker::Docker,
            _ if begins("ufw-") || begins("ufw6-") => Maker::Ufw,
            _ => Maker::Unknown,
        }
    }
}

/// Whether an expression is `iifname BRIDGE`, a set with it, or a pattern that covers it (`duet*`).
fn comes_from(expression: &Value, bridge: &str) -> bool {
    let test = &expression["match"];
    let key = &test["left"]["meta"]["key"];
    if test["op"] != "==" || (key != "iifname" && key != "iif") {
        return false;
    }
    let covers = |name: &str| match name.strip_suffix('*') {
        Some(prefix) => bridge.starts_with(prefix),
        None => name == bridge,
    };
    let right = &test["right"];
    let listed = right["set"].as_array().into_iter().flatten();
    right.as_str().is_some_and(covers) || listed.filter_map(Value::as_str).any(covers)
}

/// Rules of the older kind, which are not in nftables' rule set, and whether they are IPv6's. They are read only where
/// the kernel already holds some, since asking for them would load the modules.
fn legacy_rules() -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for (tables, program, only_v6) in [
        ("/proc/net/ip_tables_names", "iptables-legacy", false),
        ("/proc/net/ip6_tables_names", "ip6tables-legacy", true),
    ] {
        if !read(tables).is_some_and(|names| names.lines().any(|name| name == "filter")) {
            continue;
        }
        let program = programs::find(program).or_else(|| programs::find(program.trim_end_matches("-legacy")));
        if let Some(text) = program.and_then(|program| output(&program, &["-S"])) {
            found.push((text, only_v6));
        }
    }
    found
}

/// Judges the answer of `iptables -S` (iptables(8)).
fn judge_legacy(text: &str, bridge: &str, only_v6: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (hook, chain) in [(Hook::Forward, "FORWARD"), (Hook::Input, "INPUT")] {
        let closed = text.lines().any(|line| line == format!("-P {chain} DROP"));
        let from = format!(" -i {bridge} ");
        let allowed = |line: &str| {
            let own = match hook {
                Hook::Forward => !line.starts_with("-A INPUT ") && !line.contains("-input "),
                Hook::Input => {
                    !line.starts_with("-A FORWARD ") && !line.contains("-forward ") && !line.starts_with("-A DOCKER")
                }
            };
            own && format!("{line} ").contains(&from) && !line.ends_with("-j DROP") && !line.contains("-j REJECT")
        };
        if !closed || text.lines().any(allowed) {
            continue;
        }
        let maker = match hook {
            Hook::Forward if text.contains("-N DOCKER-USER") => Maker::Docker,
            _ if text.contains("-N ufw") => Maker::Ufw,
            _ => Maker::Unknown,
        };
        findings.push(Finding { maker, hook, place: format!("{chain} of iptables"), only_v6, legacy: true });
    }
    findings
}

#[cfg(test)]
mod tests {
    use rustix::thread::UnshareFlags;

    use super::*;

    /// Loads rules into a network namespace of its own and judges what nft says of them.
    fn judged(rules: &str) -> Vec<Finding> {
        std::thread::scope(|scope| {
            let probe = || {
                // SAFETY: only this thread's network namespace changes.
                unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
                let nft = programs::find("nft").expect("nft is installed");
                let dir = tempfile::tempdir().unwrap();
                let file = dir.path().join("rules");
                std::fs::write(&file, rules).unwrap();
                let loaded = Command::new(&nft).arg("-f").arg(&file).output().unwrap();
                assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
                judge(&serde_json::from_str(&output(&nft, &["-j", "list", "ruleset"]).unwrap()).unwrap(), "duetbr0")
            };
            scope.spawn(probe).join().unwrap()
        })
    }

    const DOCKER: &str = "table ip filter {
        chain DOCKER-USER { USER counter return; }
        chain DOCKER-FORWARD { iifname \"docker0\" counter accept; }
        chain FORWARD { type filter hook forward priority filter; policy drop;
            counter jump DOCKER-USER
            counter jump DOCKER-FORWARD; }
        }";

    #[test]
    fn docker_drops_until_its_user_chain_accepts() {
        let findings = judged(&DOCKER.replace("USER counter", "counter"));
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!((findings[0].maker, findings[0].hook), (Maker::Docker, Hook::Forward));
        assert_eq!(findings[0].place, "ip filter FORWARD");
        let mend = findings[0].check("duetbr0").mend.unwrap();
        assert!(
            mend.starts_with("iptables -I DOCKER-USER -i duetbr0 -j ACCEPT\niptables -I DOCKER-USER -o "),
            "{mend}"
        );
        assert_eq!(judged(&DOCKER.replace("USER counter", "iifname \"duetbr0\" accept\ncounter")), []);
        assert_eq!(judged(&DOCKER.replace("USER counter", "iifname \"duet*\" accept\ncounter")), []);
        assert_eq!(judged(&DOCKER.replace("USER counter", "iifname { \"a\", \"duetbr0\" } accept\ncounter")), []);
        assert_eq!(judged(&DOCKER.replace("USER counter", "iifname \"duetbr0\" drop\ncounter")).len(), 1);
    }

    #[test]
    fn ufw_drops_forwarded_and_incoming() {
        let ufw = "table ip filter {
            chain ufw-user-input { INPUT }
            chain ufw-user-forward { FORWARD }
            chain INPUT { type filter hook input priority filter; policy drop; counter jump ufw-user-input; }
            chain FORWARD { type filter hook forward priority filter; policy drop; counter jump ufw-user-forward; }
            }
            table ip6 filter {
            chain ufw6-user-forward { }
            chain FORWARD { type filter hook forward priority filter; policy drop; counter jump ufw6-user-forward; }
            }";
        let findings = judged(&ufw.replace("{ INPUT }", "{ }").replace("{ FORWARD }", "{ }"));
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert!(findings.iter().all(|finding| finding.maker == Maker::Ufw));
        assert_eq!(findings.iter().filter(|finding| finding.hook == Hook::Input).count(), 1);
        assert_eq!(findings.iter().filter(|finding| finding.only_v6).count(), 1);
        let opened = ufw.replace("{ INPUT }", "{ iifname \"duetbr0\" accept; }").replace("{ FORWARD }", "{ }");
        assert!(judged(&opened).iter().all(|finding| finding.hook == Hook::Forward), "input is open, forward is not");
    }

    #[test]
    fn firewalld_rejects_at_the_end() {
        let firewalld = "table inet firewalld {
            chain trusted { accept; }
            chain policies { ZONES jump public; }
            chain public { iifname \"eth0\" accept; }
            chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept;
                ct state established,related accept
                jump policies
                reject with icmpx admin-prohibited; }
            }";
        let findings = judged(&firewalld.replace("ZONES", ""));
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].maker, Maker::Firewalld);
        assert_eq!(judged(&firewalld.replace("ZONES", "iifname \"duetbr0\" goto trusted\n")), []);
    }

    #[test]
    fn open_firewalls_and_our_own_are_left_alone() {
        assert_eq!(
            judged(
                "table inet x { chain y { type filter hook forward priority 0; policy accept; tcp dport 1 drop; }\n }"
            ),
            []
        );
        assert_eq!(
            judged("table inet duet { chain through { type filter hook forward priority 0; policy drop; }\n }"),
            []
        );
        assert_eq!(judged(""), []);
        assert_eq!(judge(&Value::Null, "duetbr0"), []);
    }

    #[test]
    fn chains_that_jump_in_circles_end() {
        let circle = serde_json::json!({"nftables": [
            {"chain": {"family": "ip", "table": "f", "name": "A", "hook": "forward", "policy": "drop"}},
            {"rule": {"family": "ip", "table": "f", "chain": "A", "expr": [{"jump": {"target": "A"}}]}},
        ]});
        assert_eq!(judge(&circle, "duetbr0").len(), 1);
    }

    #[test]
    fn older_rules_are_understood() {
        let docker = "-P INPUT ACCEPT\n-P FORWARD DROP\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n";
        let findings = judge_legacy(docker, "duetbr0", false);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].maker, Maker::Docker);
        assert_eq!(judge_legacy(&format!("{docker}-A DOCKER-USER -i duetbr0 -j ACCEPT\n"), "duetbr0", false), []);
        assert_eq!(judge_legacy(&format!("{docker}-A DOCKER-USER -i duetbr01 -j ACCEPT\n"), "duetbr0", false).len(), 1);
    }
}
