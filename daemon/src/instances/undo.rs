//! The undo stack: each side effect registers how it is taken back the moment it is done; success disarms it all.

/// Steps to take back, last first. Dropped while armed, it takes them back.
#[derive(Default)]
pub struct Undo {
    steps: Vec<Box<dyn FnOnce() + Send>>,
}

impl Undo {
    /// Registers how the last side effect is taken back.
    pub fn push(&mut self, step: impl FnOnce() + Send + 'static) {
        self.steps.push(Box::new(step));
    }

    /// All went well: nothing is taken back.
    pub fn disarm(mut self) {
        self.steps.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some(step) = self.steps.pop() {
            step();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::Undo;

    #[test]
    fn takes_back_in_reverse_unless_disarmed() {
        let log = Arc::new(Mutex::new(Vec::new()));
        for disarm in [false, true] {
            let mut undo = Undo::default();
            for n in 0..3 {
                let log = Arc::clone(&log);
                undo.push(move || log.lock().expect("no panic holds it").push(n));
            }
            if disarm {
                undo.disarm();
            }
        }
        assert_eq!(*log.lock().expect("no panic holds it"), [2, 1, 0]);
    }
}
