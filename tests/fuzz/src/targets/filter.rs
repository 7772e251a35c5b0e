//! The filter expression of a listing's query.

use duetd::api::filter;
use serde_json::json;

use crate::assert_sentence;

/// Takes a filter.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let object = json!({
        "name": "web-1", "status": "Running", "ephemeral": false, "size": 12, "nothing": null,
        "config": {"image.os": "Debian", "limits.cpu": "2"}, "profiles": ["default", "big"],
        "devices": {"eth0": {"type": "nic"}},
    });
    match filter::keep(Some(text), vec![object.clone()]) {
        Ok(kept) => assert!(kept.iter().all(|kept| *kept == object)),
        Err(error) => assert_sentence(&error.to_string()),
    }
}

/// Expressions of every form.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        "name eq web-1",
        "not name ne \"web 1\" and status eq running or size eq 12",
        "config.image.os eq ^deb.*$ and devices.eth0.type eq nic",
        "profiles eq big or nothing eq null",
        "name eq (a|b)+[^c]{1,9}\\d",
    ]
    .map(Into::into)
    .into()
}
