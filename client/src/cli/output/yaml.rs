//! YAML as Incus' clients write and read it.

use anyhow::Context as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Prints a value. Lists stand at their key's indentation, as Go's library has it.
pub(crate) fn to_yaml<T: Serialize>(value: &T) -> anyhow::Result<String> {
    let options = serde_saphyr::ser_options! { compact_list_indent: true, prefer_block_scalars: true };
    let mut text = String::new();
    serde_saphyr::to_fmt_writer_with_options(&mut text, value, options)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Reads a value that a person wrote. In `config` and `devices`, numbers and truth values count as text: nobody
/// should have to quote `limits.cpu: 2`.
pub(crate) fn from_yaml<T: DeserializeOwned + Default>(text: &str) -> anyhow::Result<T> {
    if text.trim().is_empty() {
        return Ok(T::default());
    }
    // As YAML 1.2 and Go have it: `user.x: y` is the letter and not a truth value.
    let options = serde_saphyr::options! { strict_booleans: true };
    let mut value: Value = serde_saphyr::from_str_with_options(text, options).context("this is not valid YAML")?;
    textual_maps(&mut value);
    serde_json::from_value(value).context("this YAML does not have the expected shape")
}

/// Turns the scalars below every `config`, `devices` and `properties` into text.
fn textual_maps(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match key.as_str() {
                    "config" | "devices" | "properties" => textual(value),
                    _ => textual_maps(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(textual_maps),
        _ => {}
    }
}

fn textual(value: &mut Value) {
    match value {
        Value::Object(map) => map.values_mut().for_each(textual),
        Value::Bool(_) | Value::Number(_) => *value = Value::String(value.to_string()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{InstancePut, Profile};

    #[test]
    fn scalars_in_config_become_text() {
        let text = "config:\n  limits.cpu: 2\n  security.nesting: true\n  user.x: y\n  user.off: off\ndevices:\n  e:\n    mtu: 1400\nephemeral: true\n";
        let put: InstancePut = from_yaml(text).unwrap();
        assert_eq!(put.config["limits.cpu"], "2");
        assert_eq!(put.config["security.nesting"], "true");
        assert_eq!((put.config["user.x"].as_str(), put.config["user.off"].as_str()), ("y", "off"));
        assert_eq!(put.devices["e"]["mtu"], "1400");
        assert!(put.ephemeral);
    }

    #[test]
    fn written_as_go_writes() {
        let mut profile = Profile { name: "p".into(), used_by: vec!["/1.0/instances/c1".into()], ..Profile::default() };
        profile.config.insert("user.x".into(), "1".into());
        profile.config.insert("user.t".into(), "true".into());
        let text = to_yaml(&profile).unwrap();
        assert_eq!(
            text,
            "config:\n  user.t: \"true\"\n  user.x: \"1\"\ndescription: \"\"\ndevices: {}\nname: p\nused_by:\n\
             - /1.0/instances/c1\nproject: \"\"\n"
        );
        assert_eq!(from_yaml::<Profile>(&text).unwrap(), profile);
    }

    #[test]
    fn long_and_odd_values_survive() {
        let mut profile = Profile::default();
        for (key, value) in [
            ("user.long", "word ".repeat(60)),
            ("user.json", "[{\"Isuid\":true}]".to_owned()),
            ("user.lines", "#cloud-config\npackages:\n- vim\n".to_owned()),
            ("user.tail", "a\n\n\n".to_owned()),
            ("user.null", "null".to_owned()),
            ("user.num", "0123".to_owned()),
            ("user.colon", "a: b # c".to_owned()),
            ("user.empty", String::new()),
            ("user.space", "  lead\n  x".to_owned()),
            ("user.date", "2026-11-23T17:17:19Z".to_owned()),
        ] {
            profile.config.insert(key.to_owned(), value);
        }
        let text = to_yaml(&profile).unwrap();
        assert_eq!(from_yaml::<Profile>(&text).unwrap(), profile, "{text}");
    }
}
