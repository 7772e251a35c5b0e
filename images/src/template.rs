//! The files that an image wants written into its instances.
//!
//! Incus renders these with pongo2, a Django dialect; what images use of it (`{{ container.name }}`, `config_get(…)`,
//! `{% if … == "…" %}`, `{{ properties.x }}`) is common to the whole Jinja family, so `minijinja` serves. Pongo2's own
//! spelling of filter arguments, `|default:"x"`, is translated; its `&&`, `||` and `!` are not.
//!
//! A template is a stranger's program: it runs with a bound on its steps and on its output, without access to files
//! and without including other templates. Rendering yields text; writing it into the instance, beneath its root, is the
//! caller's work.

use std::collections::BTreeMap;
use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Value};

use crate::metadata::{Metadata, TemplateTrigger};
use crate::{ImageError, Result};

/// Steps that one template may take; a real one takes some dozens. Data counts too, about one per 64 bytes.
const FUEL: u64 = 500_000;
/// Most that one template may render, in bytes.
const MOST_OUTPUT: usize = 4 << 20;
/// Most that one template may be, in bytes.
const MOST_SOURCE: usize = 1 << 20;

/// What templates may ask about the instance, under the names that Incus gives them.
#[derive(Debug, Clone, Default)]
pub struct TemplateContext {
    /// The instance's name.
    pub name: String,
    /// The architecture's kernel name.
    pub architecture: String,
    /// Whether it is privileged.
    pub privileged: bool,
    /// Whether it is ephemeral.
    pub ephemeral: bool,
    /// The expanded configuration, which `config` and `config_get` show.
    pub config: BTreeMap<String, String>,
    /// The expanded devices.
    pub devices: BTreeMap<String, BTreeMap<String, String>>,
}

/// A file to be written into the instance.
///
/// Where it exists, its content is replaced, and its owner and mode stay; else it is made, with its folders, as
/// root's, mode 0644.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedFile {
    /// Absolute path in the instance, clean, but to be resolved beneath the instance's root all the same.
    pub path: String,
    /// The content.
    pub content: Vec<u8>,
    /// Whether a file that is already there is to be left alone.
    pub create_only: bool,
}

/// Renders all templates that belong to a trigger and passes each file to `write`, in order of path.
///
/// `templates` holds the template files by name, as [`crate::read_templates`] reads them.
///
/// # Errors
/// [`ImageError::Template`] for one that is missing or cannot be rendered; else what `write` returns.
pub fn apply_templates<E: From<ImageError>>(
    metadata: &Metadata,
    templates: &BTreeMap<String, Vec<u8>>,
    trigger: TemplateTrigger,
    context: &TemplateContext,
    write: &mut dyn FnMut(RenderedFile) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    for (path, spec) in metadata.templates.iter().filter(|(_, spec)| spec.when.contains(&trigger)) {
        let fail = |reason: &str| ImageError::Template { template: spec.template.clone(), reason: reason.to_owned() };
        let source = templates.get(&spec.template).ok_or_else(|| fail("there is no such file in the image"))?;
        let source = std::str::from_utf8(source).map_err(|_| fail("it is not UTF-8 text"))?;
        let content = render(&spec.template, source, trigger, path, &spec.properties, context)?;
        write(RenderedFile { path: path.clone(), content, create_only: spec.create_only })?;
    }
    Ok(())
}

/// Renders one template.
///
/// # Errors
/// [`ImageError::Template`] with what is wrong with it, and its line.
pub fn render(
    name: &str,
    source: &str,
    trigger: TemplateTrigger,
    path: &str,
    properties: &BTreeMap<String, String>,
    context: &TemplateContext,
) -> Result<Vec<u8>> {
    let fail = |reason: String| ImageError::Template { template: name.to_owned(), reason };
    if source.len() > MOST_SOURCE {
        return Err(fail(format!("it is larger than {MOST_SOURCE} bytes")));
    }
    let source = translate_filters(source);
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    environment.set_syntax(syntax.map_err(|e| fail(explain(&e)))?);
    // Pongo2 renders what is not there as nothing, at any depth.
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Chainable);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    let config = context.config.clone();
    environment.add_function("config_get", move |key: &str, default: Option<Value>, _: Kwargs| match config.get(key) {
        Some(value) => Value::from(value.trim_end_matches(['\r', '\n'])),
        None => default.unwrap_or_default(),
    });
    // The flags are texts, as in Incus: templates compare them with "true".
    let instance: BTreeMap<&str, Value> = BTreeMap::from([
        ("name", context.name.as_str().into()),
        ("type", "container".into()),
        ("architecture", context.architecture.as_str().into()),
        ("privileged", truth(context.privileged).into()),
        ("ephemeral", truth(context.ephemeral).into()),
    ]);
    let instance = Value::from(instance);
    let devices: BTreeMap<&str, Value> = context.devices.iter().map(|(k, v)| (k.as_str(), texts(v))).collect();
    let root: BTreeMap<&str, Value> = BTreeMap::from([
        ("trigger", trigger.as_str().into()),
        ("path", path.into()),
        ("container", instance.clone()),
        ("instance", instance),
        ("config", texts(&context.config)),
        ("devices", devices.into()),
        ("properties", texts(properties)),
    ]);
    let mut output = Bounded(Vec::new());
    let template = environment.template_from_named_str(name, &source).map_err(|e| fail(explain(&e)))?;
    match template.render_captured_to(root, &mut output) {
        Ok(_) => Ok(output.0),
        Err(_) if output.0.len() > MOST_OUTPUT => Err(fail(format!("it renders more than {MOST_OUTPUT} bytes"))),
        Err(e) => Err(fail(explain(&e))),
    }
}

fn texts(map: &BTreeMap<String, String>) -> Value {
    Value::from(map.iter().map(|(k, v)| (k.as_str(), Value::from(v.as_str()))).collect::<BTreeMap<_, _>>())
}

fn truth(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

fn explain(error: &minijinja::Error) -> String {
    let place = error.line().map_or_else(String::new, |line| format!(" (line {line})"));
    let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
    format!("{}{detail}{place}", error.kind())
}

/// An output that ends when it is too much.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        if self.0.len() > MOST_OUTPUT { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Turns pongo2's `|filter:argument` into `|filter(argument)`, inside `{{ }}` and `{% %}` only.
fn translate_filters(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        let close = if rest[open..].starts_with("{{") { "}}" } else { "%}" };
        let Some(length) = rest[open..].find(close) else { break };
        out.push_str(&rest[..open]);
        translate_tag(&rest[open..open + length], &mut out);
        rest = &rest[open + length..];
    }
    out.push_str(rest);
    out
}

fn translate_tag(tag: &str, out: &mut String) {
    let mut rest = tag;
    while let Some(bar) = rest.find('|') {
        let (before, after) = rest.split_at(bar + 1);
        out.push_str(before);
        let word = after.len() - after.trim_start().trim_start_matches(|c: char| c.is_alphanumeric() || c == '_').len();
        let (filter, argument) = after.split_at(word);
        out.push_str(filter);
        rest = argument;
        if let Some(argument) = argument.strip_prefix(':') {
            let length = match argument.chars().next() {
                Some(quote @ ('"' | '\'')) => argument[1..].find(quote).map_or(argument.len(), |at| at + 2),
                _ => argument.find(|c: char| !(c.is_alphanumeric() || "_.-".contains(c))).unwrap_or(argument.len()),
            };
            out.push('(');
            out.push_str(&argument[..length]);
            out.push(')');
            rest = &argument[length..];
        }
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::TemplateSpec;

    fn context() -> TemplateContext {
        TemplateContext {
            name: "c1".into(),
            architecture: "x86_64".into(),
            config: [("user.a", "1\n"), ("user.network_mode", "link-local")].map(|(k, v)| (k.into(), v.into())).into(),
            devices: [("eth0".to_owned(), [("type".to_owned(), "nic".to_owned())].into())].into(),
            ..TemplateContext::default()
        }
    }

    fn show(source: &str) -> String {
        let properties = [("default".to_owned(), "#cloud-config\n{}".to_owned())].into();
        match render("t", source, TemplateTrigger::Create, "/etc/x", &properties, &context()) {
            Ok(bytes) => String::from_utf8(bytes).unwrap(),
            Err(e) => format!("error: {e}"),
        }
    }

    #[test]
    fn what_images_use() {
        for (source, wanted) in [
            ("{{ container.name }}\n", "c1\n"),
            ("{{ instance.name }} {{ instance.type }} {{ container.privileged }}", "c1 container false"),
            ("127.0.1.1\t{{ container.name }}\n", "127.0.1.1\tc1\n"),
            ("{{ config_get(\"user.a\", \"x\") }}{{ config_get(\"user.b\", \"x\") }}", "1x"),
            ("{{ config_get(\"user.user-data\", properties.default) }}", "#cloud-config\n{}"),
            (
                "{% if config_get(\"user.network_mode\", \"\") == \"link-local\" %}manual{% else %}dhcp{% endif %}",
                "manual",
            ),
            ("{% if container.ephemeral == \"true\" %}gone{% endif %}", ""),
            ("{{ trigger }} {{ path }} {{ devices.eth0.type }}", "create /etc/x nic"),
            ("{{ config[\"user.a\"]|trim }}", "1"),
            ("{{ nothing.at.all }}", ""),
            ("{{ properties.missing|default:\"fallback\" }}", "fallback"),
            ("{{ config_get(\"user.none\", \"\") }}<&>{{ '<&>' }}", "<&><&>"),
            ("a | b: c {{ container.name|upper }}", "a | b: c C1"),
            ("no newline", "no newline"),
        ] {
            assert_eq!(show(source), wanted, "{source}");
        }
    }

    #[test]
    fn hostile_ones_end_soon() {
        for source in [
            "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
            "{{ 'x' * 100000000000 }}",
            "{% for i in range(1000) %}{{ 'x' * 100000 }}{% endfor %}",
            "{% include '/etc/shadow' %}",
            "{{",
            "{% if %}",
            "{% set a = 'xxxxxxxxxxxxxxxx' %}{% for i in range(60) %}{% set a = a ~ a %}{% endfor %}{{ a }}{{ 1 / 0 }}",
        ] {
            let started = std::time::Instant::now();
            assert!(show(source).starts_with("error: cannot render the image's template \"t\": "), "{source}");
            assert!(started.elapsed().as_secs() < 10, "{source}");
        }
        let deep = format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000));
        assert!(show(&deep).starts_with("error: "));
    }

    #[test]
    fn only_the_triggers_own() {
        let spec = |when: &[TemplateTrigger], template: &str| TemplateSpec {
            when: when.to_vec(),
            template: template.into(),
            create_only: template == "b",
            ..TemplateSpec::default()
        };
        let metadata = Metadata {
            architecture: "x86_64".into(),
            templates: [
                ("/etc/a".to_owned(), spec(&[TemplateTrigger::Create, TemplateTrigger::Start], "a")),
                ("/etc/b".to_owned(), spec(&[TemplateTrigger::Start], "b")),
                ("/etc/c".to_owned(), spec(&[TemplateTrigger::Copy], "gone")),
            ]
            .into(),
            ..Metadata::default()
        };
        let templates = [("a".to_owned(), b"{{ trigger }}".to_vec()), ("b".to_owned(), b"b".to_vec())].into();
        let run = |trigger| {
            let mut files = Vec::new();
            let mut write = |file: RenderedFile| -> Result<()> {
                files.push((file.path, String::from_utf8(file.content).unwrap(), file.create_only));
                Ok(())
            };
            apply_templates(&metadata, &templates, trigger, &context(), &mut write).map(|()| files)
        };
        assert_eq!(run(TemplateTrigger::Create).unwrap(), [("/etc/a".into(), "create".into(), false)]);
        let start = run(TemplateTrigger::Start).unwrap();
        assert_eq!(start, [("/etc/a".into(), "start".into(), false), ("/etc/b".into(), "b".into(), true)]);
        assert!(run(TemplateTrigger::Copy).unwrap_err().to_string().contains("\"gone\""));
    }
}
