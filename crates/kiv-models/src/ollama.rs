//! ollama's store: `manifests/registry/namespace/model/tag` name blobs.

use crate::files::{entries, name};
use crate::{FoundModel, Listing, Problem, Source};
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    size: u64,
}

const MODEL: &str = "application/vnd.ollama.image.model";
const ADAPTER: &str = "application/vnd.ollama.image.adapter";

pub(crate) fn list(root: &Path, listing: &mut Listing) {
    for registry in entries(&root.join("manifests")) {
        for namespace in entries(&registry) {
            for model in entries(&namespace) {
                for tag in entries(&model) {
                    let [r, n, m, t] = [&registry, &namespace, &model, &tag].map(|p| name(p));
                    // What its user writes: the usual registry and namespace are
                    // left out.
                    let full = match (r.as_str(), n.as_str()) {
                        ("registry.ollama.ai", "library") => format!("{m}:{t}"),
                        ("registry.ollama.ai", _) => format!("{n}/{m}:{t}"),
                        _ => format!("{r}/{n}/{m}:{t}"),
                    };
                    let found = read(root, &tag, &full);
                    listing.add(full, found);
                }
            }
        }
    }
}

fn read(root: &Path, manifest: &Path, name: &str) -> Result<FoundModel, Problem> {
    let problem = |path: &Path, why: String| Problem {
        path: path.to_owned(),
        why: format!("{why}: `ollama pull {name}` fetches it again"),
    };
    let text = std::fs::read_to_string(manifest)
        .map_err(|error| problem(manifest, format!("the manifest cannot be read ({error})")))?;
    let parsed: Manifest = serde_json::from_str(&text)
        .map_err(|error| problem(manifest, format!("the manifest is damaged ({error})")))?;
    let layer = parsed.layers.iter().find(|l| l.media_type == MODEL);
    let Some(layer) = layer else {
        return Err(Problem {
            path: manifest.to_owned(),
            why: "the manifest names no weights: a model that ollama does not run itself"
                .to_owned(),
        });
    };
    if parsed.layers.iter().any(|l| l.media_type == ADAPTER) {
        return Err(Problem {
            path: manifest.to_owned(),
            why: "it is a model with an adapter, which kiv does not apply: merge them first"
                .to_owned(),
        });
    }
    let digest = layer
        .digest
        .strip_prefix("sha256:")
        .filter(|hex| crate::is_sha256(hex));
    let Some(digest) = digest else {
        return Err(problem(
            manifest,
            format!("{:?} is no digest", layer.digest),
        ));
    };
    let blob = root.join("blobs").join(format!("sha256-{digest}"));
    let size = match std::fs::metadata(&blob) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(problem(&blob, "the weights are missing".to_owned()));
        }
        Err(error) => {
            return Err(problem(
                &blob,
                format!("the weights cannot be read ({error})"),
            ));
        }
    };
    if size != layer.size {
        let why = format!("the weights have {size} bytes instead of {}", layer.size);
        return Err(problem(&blob, why));
    }
    Ok(FoundModel {
        name: name.to_owned(),
        source: Source::Ollama,
        path: blob,
        bytes: size,
        sha256: Some(digest.to_lowercase()),
        parts: Vec::new(),
    })
}
