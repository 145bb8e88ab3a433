//! What a real node needs beside the cluster: a machine that can be one, images of the project's own programs,
//! helm, and load from outside.

mod helm;
mod images;
mod inventory;
mod requirements;
mod traffic;

use std::time::Instant;

pub use helm::Helm;
pub use images::{AGENT_IMAGE, DECIDER_IMAGE, ENGINE_IMAGE, build as build_images};
pub use inventory::Inventory;
pub use requirements::prepare;
pub use traffic::{Traffic, failed};

/// Says when what happened, to the person who waits for it.
#[derive(Debug)]
pub struct Stages {
    began: Instant,
}

impl Stages {
    /// The clock starts.
    pub fn begin() -> Self {
        Stages { began: Instant::now() }
    }

    /// One line.
    pub fn say(&self, text: &str) {
        super::cluster::say(&format!("{:7.1} s  {text}", self.elapsed_s()));
    }

    /// Since the clock's start, s.
    pub fn elapsed_s(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}
