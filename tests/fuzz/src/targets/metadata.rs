//! `metadata.yaml`, and the templates that it names.

use std::collections::BTreeMap;

use duet_images::{ImageError, Metadata, TemplateContext, TemplateTrigger, apply_templates};

use super::archive::METADATA;
use crate::assert_sentence;

/// Takes a `metadata.yaml`, and after a NUL the text of all its templates.
pub fn run(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let metadata = match Metadata::from_yaml(&data[..end]) {
        Ok(metadata) => metadata,
        Err(error) => {
            assert_sentence(&error.to_string());
            assert!(error.is_bad_image());
            return;
        }
    };
    let text = metadata.to_yaml().expect("what was read can be written");
    assert_eq!(Metadata::from_yaml(text.as_bytes()).expect("what was written can be read"), metadata);
    let content = data.get(end + 1..).unwrap_or_default().to_vec();
    let templates: BTreeMap<String, Vec<u8>> =
        metadata.templates.values().map(|spec| (spec.template.clone(), content.clone())).collect();
    let context = TemplateContext {
        name: "c1".to_owned(),
        architecture: "x86_64".to_owned(),
        privileged: false,
        ephemeral: false,
        config: BTreeMap::from([("user.key".to_owned(), "value".to_owned())]),
        devices: BTreeMap::new(),
    };
    let applied =
        apply_templates(&metadata, &templates, TemplateTrigger::Start, &context, &mut |_| Ok::<_, ImageError>(()));
    if let Err(error) = applied {
        assert_sentence(&error.to_string());
    }
}

/// One without templates and two with.
pub fn seeds() -> Vec<Vec<u8>> {
    let with = |template: &str| {
        format!(
            "{METADATA}templates:\n  /etc/hostname:\n    when: [create, copy, start]\n    create_only: true\n    \
             template: a.tpl\n    properties:\n      key: value\n\0{template}"
        )
        .into_bytes()
    };
    vec![
        METADATA.into(),
        with("{{ container.name }}\n"),
        with("{% for key in [1, 2] %}{{ config_get(\"user.key\", \"none\") }}{% endfor %}"),
        with("{% if properties.key == \"value\" %}{{ \"x\" * 10 }}{% endif %}"),
    ]
}
