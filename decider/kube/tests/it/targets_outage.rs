//! The API server goes away and comes back, behind a proxy that can be cut.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use infer_kube::targets::{ApplyError, DrainSpec, Targets};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::targets_cluster::*;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Line {
    Open,
    /// Connections break.
    Cut,
    /// Connections stay, but nothing comes through.
    Frozen,
}

/// Forwards connections.
async fn proxy(listener: TcpListener, to: SocketAddr, line: watch::Receiver<Line>) {
    while let Ok((mut near, _)) = listener.accept().await {
        let mut line = line.clone();
        tokio::spawn(async move {
            if *line.borrow() == Line::Cut {
                return;
            }
            let Ok(_) = line.wait_for(|line| *line != Line::Frozen).await else {
                return;
            };
            let Ok(mut far) = TcpStream::connect(to).await else {
                return;
            };
            loop {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    changed = line.changed() => if changed.is_err() { return },
                }
                if *line.borrow() == Line::Cut {
                    return;
                }
                if line.wait_for(|line| *line != Line::Frozen).await.is_err() || *line.borrow() == Line::Cut {
                    return;
                }
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_known_is_kept_with_its_age_and_nothing_shrinks() {
    let Some(space) = Space::new("outage").await else {
        return;
    };
    space.workload("deployments", "chat", 3).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = space.config.cluster_url.clone();
    let host = url.host().unwrap().to_owned();
    let far = tokio::net::lookup_host((host.as_str(), url.port_u16().unwrap_or(443)))
        .await
        .unwrap()
        .next()
        .unwrap();
    let (line, state) = watch::channel(Line::Open);
    let mut config = space.config.clone();
    config.cluster_url = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
    config.tls_server_name = Some(host);
    tokio::spawn(proxy(listener, far, state));
    let agents = Arc::new(FakeAgents::default());
    let mut options = options();
    options.request_timeout = Duration::from_millis(500);
    options.apply_timeout = Duration::from_secs(2);
    let targets = Targets::start(kube::Client::try_from(config).unwrap(), options, agents.clone());
    let drain = DrainSpec {
        timeout_s: 300.0,
        quiet_s: 0.5,
    };
    targets.track("k", vec![part(space.target("apps/v1", "Deployment", "chat"))], drain);
    fleet(&targets, "k", "three ready", |fleet| {
        fleet.parts[0].ready == 3 && fleet.stale_since.is_none()
    })
    .await;
    for how in [Line::Cut, Line::Frozen] {
        let before = targets.fleet("k").unwrap();
        line.send(how).unwrap();
        let stale = fleet(&targets, "k", "stale", |fleet| fleet.stale_since.is_some()).await;
        assert_eq!(stale.view, before.view, "{how:?}");
        let refused = targets
            .apply(plan("k", 3, 2), format!("{how:?}-down"))
            .await
            .unwrap_err();
        assert!(refused.to_string().starts_with("nothing shrinks"), "{refused}");
        let began = tokio::time::Instant::now();
        let failed = targets.apply(plan("k", 3, 4), format!("{how:?}-up")).await;
        assert!(
            matches!(failed, Err(ApplyError::Backend(_) | ApplyError::Expired(_))),
            "{failed:?}"
        );
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        line.send(Line::Open).unwrap();
        let began = tokio::time::Instant::now();
        fleet(&targets, "k", "fresh again", |fleet| fleet.stale_since.is_none()).await;
        eprintln!("{how:?}: fresh again after {:?}", began.elapsed());
        assert_eq!(space.count("deployments", "chat").await, 3, "{how:?}");
    }
    // What happens while nobody looks is seen afterwards.
    line.send(Line::Cut).unwrap();
    fleet(&targets, "k", "stale", |fleet| fleet.stale_since.is_some()).await;
    let scale = format!("{}/chat/scale", space.all("apps/v1", "deployments"));
    space.merge(&scale, serde_json::json!({"spec": {"replicas": 5}})).await;
    line.send(Line::Open).unwrap();
    fleet(&targets, "k", "five ready", |fleet| {
        fleet.parts[0].ready == 5 && fleet.view.spec == 5 && fleet.stale_since.is_none()
    })
    .await;
    targets.apply(plan("k", 5, 4), "down".to_owned()).await.unwrap();
    fleet(&targets, "k", "four left", |fleet| {
        fleet.parts[0].spec == 4 && fleet.view.pods.len() == 4
    })
    .await;
    assert!(agents.draining().len() <= 1);
    space.end().await;
}
