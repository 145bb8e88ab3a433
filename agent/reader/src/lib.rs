//! Understands an inference engine's metrics: parser, engine readers, deltas, histograms. Pure: bytes in, values out.
//!
//! * [`exposition`] reads the text formats, allocation-free;
//! * [`engine`] knows what vLLM and SGLang call things, [`mapping`] reads the same knowledge for other engines from YAML;
//! * [`delta`] keeps the last reading and says what happened since;
//! * [`histogram`] turns bucket counts into honest pairs of HdrHistograms and quantile bounds;
//! * [`mod@inspect`] does all of that for two captured bodies, for people.
//!
//! The agent does the I/O: it hands whole bodies to [`Reader::advance`].

pub mod delta;
pub mod engine;
pub mod exposition;
pub mod histogram;
pub mod inspect;
pub mod mapping;

pub use delta::{Advance, Error, FastBody, FastPath, Reader, ReaderOptions};
pub use inspect::{Inspection, inspect, render_table};
pub use mapping::Mapping;
