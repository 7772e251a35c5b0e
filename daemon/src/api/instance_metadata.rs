//! `/1.0/instances/{name}/metadata` and its templates.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use duet_client::api::{ImageMetadata, ImageMetadataPatch, ImageMetadataTemplate};
use duet_images::{Metadata, TemplateSpec, TemplateTrigger};
use serde::Deserialize;
use utoipa::IntoParams;

use super::describe::{ContentTooLarge, Empty, IfMatch, InstanceName, JsonOrBytes, Many, Tagged, Text};
use super::extract::{Input, Path, Query};
use super::response::{Answer, body_bytes, empty, etag, if_match, sync, tagged};
use crate::app::App;
use crate::error::{Error, Result};
use crate::instances::{expand, templates};

fn wire(metadata: Metadata) -> ImageMetadata {
    let template = |spec: TemplateSpec| ImageMetadataTemplate {
        when: spec.when.iter().map(|t| t.as_str().to_owned()).collect(),
        create_only: spec.create_only,
        template: spec.template,
        properties: spec.properties,
        ..ImageMetadataTemplate::default()
    };
    ImageMetadata {
        architecture: metadata.architecture,
        creation_date: metadata.creation_date,
        expiry_date: metadata.expiry_date,
        properties: metadata.properties,
        templates: metadata.templates.into_iter().map(|(path, spec)| (path, template(spec))).collect(),
    }
}

fn read(wire: ImageMetadata) -> Result<Metadata> {
    let trigger = |word: &String| match word.as_str() {
        "create" => Ok(TemplateTrigger::Create),
        "copy" => Ok(TemplateTrigger::Copy),
        "start" => Ok(TemplateTrigger::Start),
        "rename" => Ok(TemplateTrigger::Rename),
        other => {
            Err(Error::invalid(format!("\"{other}\" is no occasion for a template: use create, copy, rename or start")))
        }
    };
    let template = |spec: ImageMetadataTemplate| -> Result<TemplateSpec> {
        Ok(TemplateSpec {
            when: spec.when.iter().map(trigger).collect::<Result<_>>()?,
            create_only: spec.create_only,
            template: spec.template,
            properties: spec.properties,
        })
    };
    Ok(Metadata {
        architecture: wire.architecture,
        creation_date: wire.creation_date,
        expiry_date: wire.expiry_date,
        properties: wire.properties,
        templates: wire.templates.into_iter().map(|(path, spec)| Ok((path, template(spec)?))).collect::<Result<_>>()?,
    })
}

/// Shows what the image said of itself, kept with the instance.
#[utoipa::path(get, path = "/1.0/instances/{name}/metadata", params(InstanceName), responses(Tagged<ImageMetadata>))]
pub(super) async fn get(State(app): State<App>, Path(name): Path<String>) -> Answer {
    let metadata = wire(templates::metadata(&app, &expand::find(&app, &name)?)?);
    let tag = etag(&metadata);
    Ok(tagged(metadata, &tag))
}

/// Replaces what the image said of itself.
#[utoipa::path(
    put,
    path = "/1.0/instances/{name}/metadata",
    params(InstanceName, IfMatch),
    request_body = ImageMetadata,
    responses(Empty)
)]
pub(super) async fn put(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(body): Input<ImageMetadata>,
) -> Answer {
    let _turn = app.edits.lock().await;
    let expanded = expand::find(&app, &name)?;
    if_match(&headers, &etag(&wire(templates::metadata(&app, &expanded)?)))?;
    templates::set_metadata(&app, &expanded, &read(body)?)?;
    Ok(empty())
}

/// Changes only what is present; properties are merged by name, templates by path.
#[utoipa::path(
    patch,
    path = "/1.0/instances/{name}/metadata",
    params(InstanceName, IfMatch),
    request_body = ImageMetadataPatch,
    responses(Empty)
)]
pub(super) async fn patch(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(body): Input<ImageMetadataPatch>,
) -> Answer {
    let _turn = app.edits.lock().await;
    let expanded = expand::find(&app, &name)?;
    let mut next = wire(templates::metadata(&app, &expanded)?);
    if_match(&headers, &etag(&next))?;
    next.architecture = body.architecture.unwrap_or(next.architecture);
    next.creation_date = body.creation_date.unwrap_or(next.creation_date);
    next.expiry_date = body.expiry_date.unwrap_or(next.expiry_date);
    next.properties.extend(body.properties);
    next.templates.extend(body.templates);
    templates::set_metadata(&app, &expanded, &read(next)?)?;
    Ok(empty())
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// The template's name.
    path: Option<String>,
}

/// Lists the names of the templates, or sends the one that `path` names.
#[utoipa::path(
    get,
    path = "/1.0/instances/{name}/metadata/templates",
    params(InstanceName, Which),
    responses(JsonOrBytes<Many<Text>>)
)]
pub(super) async fn templates(State(app): State<App>, Path(name): Path<String>, Query(query): Query<Which>) -> Answer {
    let mut all = templates::templates(&app, &expand::find(&app, &name)?)?;
    match query.path.filter(|path| !path.is_empty()) {
        None => Ok(sync(all.keys().collect::<Vec<_>>())),
        Some(path) => {
            let content = all.remove(&path);
            let content = content.ok_or_else(|| Error::not_found(format!("there is no template \"{path}\"")))?;
            Ok(([(header::CONTENT_TYPE, "application/octet-stream")], content).into_response())
        }
    }
}

fn wanted(query: Which) -> Result<String> {
    query.path.filter(|p| !p.is_empty()).ok_or_else(|| Error::invalid("name the template: ?path=hostname.tpl"))
}

/// Writes a template.
#[utoipa::path(
    post,
    path = "/1.0/instances/{name}/metadata/templates",
    params(InstanceName, Which),
    request_body(description = "The template.", content_type = "application/octet-stream"),
    responses(Empty, ContentTooLarge)
)]
pub(super) async fn write_template(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(query): Query<Which>,
    request: Request,
) -> Answer {
    let path = wanted(query)?;
    let expanded = expand::find(&app, &name)?;
    let content = body_bytes(request.into_body()).await?;
    templates::set_template(&app, &expanded, &path, Some(&content))?;
    Ok(empty())
}

/// Deletes a template.
#[utoipa::path(
    delete,
    path = "/1.0/instances/{name}/metadata/templates",
    params(InstanceName, Which),
    responses(Empty)
)]
pub(super) async fn delete_template(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(query): Query<Which>,
) -> Answer {
    let path = wanted(query)?;
    templates::set_template(&app, &expand::find(&app, &name)?, &path, None)?;
    Ok(empty())
}
