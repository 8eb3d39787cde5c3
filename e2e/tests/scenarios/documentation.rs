//! The documentation of the HTTP API.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use devstack::{Reaper, TemporaryDirectory};
use e2e::Harness;

use crate::{Outcome, close};

pub async fn the_documentation_is_served_without_outside_downloads(harness: &Harness) -> Outcome {
    let shop = harness.open("documentation", &[]).await?;
    let document = shop.customer.get("/openapi.json").await?;
    ensure!(
        document["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with("3.1")),
        "{document}"
    );
    for path in [
        "/api/v1/orders",
        "/api/v1/orders/{id}",
        "/api/v1/orders/{id}/cancel",
        "/api/v1/orders/{id}/events",
        "/api/v1/orders/{id}/timeline",
        "/api/v1/products",
        "/api/v1/products/{sku}",
    ] {
        ensure!(
            document["paths"][path].is_object(),
            "{path} is not documented"
        );
    }
    let page = shop
        .customer
        .request("GET", "/docs/")
        .send()
        .await?
        .error_for_status()?
        .text()
        .await?;
    ensure!(
        !page.contains("https://") && !page.contains("//cdn"),
        "the page needs the internet: {page}"
    );
    let scripts = page
        .split("src=\"./")
        .skip(1)
        .filter_map(|rest| rest.split('"').next());
    for script in scripts {
        shop.customer
            .request("GET", &format!("/docs/{script}"))
            .send()
            .await?
            .error_for_status()?;
    }
    close(shop).await
}

/// The browser that this machine has, if any.
pub fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = [
        "chromium",
        "chromium-browser",
        "google-chrome",
        "google-chrome-stable",
    ];
    std::env::split_paths(&path)
        .flat_map(|directory| names.map(|name| directory.join(name)))
        .find(|path| path.is_file())
}

/// The page shows every call in a browser that cannot reach anything but the gateway.
pub async fn the_documentation_page_works_in_a_browser(harness: &Harness) -> Outcome {
    let shop = harness.open("browser", &[]).await?;
    let profile = TemporaryDirectory::new(&Reaper::new()?)?;
    let browser = tokio::process::Command::new(browser().context("no browser on the PATH")?)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-sync",
            "--disable-quic",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--virtual-time-budget=30000",
        ])
        .args([
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
            "--dump-dom",
            "--enable-logging=stderr",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("{}/docs/", shop.endpoints().gateway))
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(devstack::test::TIMEOUT, browser)
        .await
        .context("the browser hangs")??;
    let log = String::from_utf8_lossy(&output.stderr);
    let refused: Vec<_> = log
        .lines()
        .filter(|line| line.contains("Content Security Policy"))
        .collect();
    ensure!(
        refused.is_empty(),
        "the page needs more than it may: {refused:#?}"
    );
    let page = String::from_utf8_lossy(&output.stdout);
    let document = shop.customer.get("/openapi.json").await?;
    for path in document["paths"]
        .as_object()
        .context("the document has paths")?
        .keys()
    {
        ensure!(
            page.contains(&format!("data-path=\"{path}\"")),
            "{path} is not shown: {page}"
        );
    }
    close(shop).await
}
