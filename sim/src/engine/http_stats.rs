//! What the HTTP front end counts about itself.

use std::collections::BTreeMap;

use super::stats::Histogram;

/// Upper bounds of the coarse duration histogram, s.
const COARSE_S: &[f64] = &[0.1, 0.5, 1.0];
/// Upper bounds of the fine duration histogram, s.
const FINE_S: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0,
];

/// A path as the metrics name it, and a method.
pub type Route = (&'static str, &'static str);

/// Counters of one path and method.
#[derive(Debug, Clone)]
pub struct RouteStats {
    /// Requests begun.
    pub started: u64,
    /// Requests begun and not ended.
    pub active: u64,
    /// Responses by status code.
    pub responses: BTreeMap<u16, u64>,
    /// Sum of the requests' Content-Length, bytes.
    pub request_bytes: u64,
    /// Sum of the responses' Content-Length, bytes; streams have none.
    pub response_bytes: u64,
    /// Durations, to the end of the body, s.
    pub duration_s: Histogram,
}

impl RouteStats {
    /// Responses whatever their status.
    pub fn ended(&self) -> u64 {
        self.responses.values().sum()
    }
}

/// Counters by path and method.
#[derive(Debug, Clone)]
pub struct HttpStats {
    /// By route.
    pub routes: BTreeMap<Route, RouteStats>,
    /// Durations of all counted requests, s.
    pub duration_s: Histogram,
}

impl Default for HttpStats {
    fn default() -> Self {
        Self {
            routes: BTreeMap::new(),
            duration_s: Histogram::new(FINE_S),
        }
    }
}

impl HttpStats {
    /// A request began.
    pub fn begin(&mut self, route: Route, request_bytes: u64) {
        let stats = self.routes.entry(route).or_insert_with(|| RouteStats {
            started: 0,
            active: 0,
            responses: BTreeMap::new(),
            request_bytes: 0,
            response_bytes: 0,
            duration_s: Histogram::new(COARSE_S),
        });
        stats.started += 1;
        stats.active += 1;
        stats.request_bytes += request_bytes;
    }

    /// A request that began is over.
    pub fn end(&mut self, route: Route, status: u16, response_bytes: u64, duration_s: f64) {
        if let Some(stats) = self.routes.get_mut(&route) {
            stats.active = stats.active.saturating_sub(1);
            *stats.responses.entry(status).or_default() += 1;
            stats.response_bytes += response_bytes;
            stats.duration_s.observe(duration_s);
            self.duration_s.observe(duration_s);
        }
    }
}

/// `2xx` and the like.
pub fn status_class(status: u16) -> String {
    format!("{}xx", status / 100)
}
