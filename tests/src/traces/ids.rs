//! The ids that the recorded daemon gave, and those that ours gives for the same things.

use std::collections::HashMap;

use serde_json::Value;

/// The shortest part of a fingerprint that stands for it.
const SHORT: usize = 12;

/// Recorded ids with ours.
#[derive(Debug, Default)]
pub struct Ids {
    known: HashMap<String, String>,
}

impl Ids {
    /// Notes that `ours` stands where the recorded answer has `theirs`, be it an id or text with ids in it.
    pub fn learn(&mut self, theirs: &str, ours: &str) {
        let (theirs, ours): (Vec<_>, Vec<_>) = (ids(theirs), ids(ours));
        if theirs.len() == ours.len() {
            for (theirs, ours) in theirs.into_iter().zip(ours) {
                self.known.insert(theirs.to_owned(), ours.to_owned());
            }
        }
    }

    /// As [`learn`](Self::learn), of all text at the same place in two values.
    pub fn learn_all(&mut self, theirs: &Value, ours: &Value) {
        match (theirs, ours) {
            (Value::String(theirs), Value::String(ours)) => self.learn(theirs, ours),
            (Value::Array(theirs), Value::Array(ours)) => {
                theirs.iter().zip(ours).for_each(|(theirs, ours)| self.learn_all(theirs, ours));
            }
            (Value::Object(theirs), Value::Object(ours)) => {
                for (name, theirs) in theirs {
                    if let Some(ours) = ours.get(name) {
                        self.learn_all(theirs, ours);
                    }
                }
            }
            _ => {}
        }
    }

    /// Text with our ids in place of the recorded ones.
    pub fn ours(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for word in words(&text).map(str::to_owned).collect::<Vec<_>>() {
            if let Some(ours) = self.of(&word) {
                text = text.replace(&word, &ours);
            }
        }
        text
    }

    /// As [`ours`](Self::ours), of all text in a value.
    pub fn ours_in(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.ours(text)),
            Value::Array(items) => items.iter().map(|item| self.ours_in(item)).collect(),
            Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), self.ours_in(value))).collect(),
            other => other.clone(),
        }
    }

    fn of(&self, word: &str) -> Option<String> {
        if let Some(ours) = self.known.get(word) {
            return Some(ours.clone());
        }
        let (_, ours) = self
            .known
            .iter()
            .find(|(theirs, ours)| word.len() >= SHORT && theirs.starts_with(word) && ours.len() == 64)?;
        ours.get(..word.len()).map(str::to_owned)
    }
}

/// The UUIDs and SHA-256 sums in a text.
pub fn ids(text: &str) -> Vec<&str> {
    words(text).filter(|word| is_uuid(word) || (word.len() == 64 && !word.contains('-'))).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_hexdigit() && c != '-').filter(|word| word.len() >= SHORT)
}

fn is_uuid(word: &str) -> bool {
    word.len() == 36 && word.split('-').map(str::len).eq([8, 4, 4, 4, 12])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_exchanged() {
        let mut ids = Ids::default();
        let (theirs, ours) = ("2d0416d5-e6e2-442e-8ff0-66e260dd2bc9", "00000000-e6e2-442e-8ff0-66e260dd2bc9");
        ids.learn(&format!("/1.0/operations/{theirs}"), &format!("/1.0/operations/{ours}"));
        ids.learn(&"a1".repeat(32), &"b2".repeat(32));
        assert_eq!(ids.ours(&format!("/1.0/operations/{theirs}/wait?x=1")), format!("/1.0/operations/{ours}/wait?x=1"));
        assert_eq!(ids.ours("/1.0/images/a1a1a1a1a1a1"), "/1.0/images/b2b2b2b2b2b2");
        assert_eq!(ids.ours("nothing of 0123"), "nothing of 0123");
    }
}
