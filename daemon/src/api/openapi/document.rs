//! Makes the document of what the handlers say, and of what is true for all of them.

use duet_client::api::*;
use utoipa::openapi::path::{Operation as Described, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::{Content, Object, OpenApi, Ref, RefOr, Required, ResponseBuilder, Type};
use utoipa::{OpenApi as _, ToSchema};

use super::super::Annotations;
use super::super::describe::{ImageForm, Metadata, bytes, envelope, header};
use super::super::response::status_of;
use crate::error::Kind;

/// What no handler says: the document's head, and the schemas that are in answers, operations and websockets. Those of
/// request bodies come with the handlers.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Duet",
        version = "1.0",
        description = "Manages system containers. The API is Incus', and what is Duet's own carries an extension name that \
                       begins with `duet_`. It is served on the unix socket `unix.socket` in the daemon's directory, \
                       `/var/lib/duet` by default; who may open that socket may do everything.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "server", description = "The server itself."),
        (name = "cluster", description = "The cluster, of which there is none."),
        (name = "images", description = "Images, and the aliases that name them."),
        (name = "instances", description = "Instances: system containers."),
        (name = "metadata", description = "What the server knows of itself."),
        (name = "networks", description = "Networks."),
        (name = "operations", description = "What goes on in the background."),
        (name = "profiles", description = "Configuration that instances have in common."),
        (name = "projects", description = "Projects, of which there is one."),
        (name = "storage-pools", description = "Where instances and images are kept."),
        (name = "warnings", description = "What somebody has to look at."),
    ),
    components(schemas(
        Cluster,
        Event,
        EventLifecycle,
        EventLogging,
        Image,
        ImageAliasesEntry,
        ImageForm,
        ImageMetadata,
        Instance,
        InstanceConsoleMetadata,
        InstanceExecMetadata,
        InstanceFull,
        InstanceSnapshot,
        InstanceState,
        MetadataConfiguration,
        Network,
        NetworkLease,
        NetworkState,
        Operation,
        OperationProgress,
        Profile,
        Project,
        ProjectState,
        Resources,
        Response,
        Server,
        SessionControl,
        StoragePool,
        StoragePoolResources,
        Warning,
    )),
)]
struct Frame;

/// The whole document.
pub fn document() -> OpenApi {
    let mut document = Frame::openapi();
    document.merge(Annotations::openapi());
    let tags: Vec<String> = document.tags.iter().flatten().map(|tag| tag.name.clone()).collect();
    for (path, mut item) in std::mem::take(&mut document.paths.paths) {
        // The router's word for a parameter that may hold slashes.
        let path = path.replace("{*", "{");
        let tag = path.split('/').nth(2).filter(|first| tags.iter().any(|tag| tag == first)).unwrap_or("server");
        for (method, operation) in operations(&mut item) {
            operation.operation_id = Some(format!("{}_{method}", name(&path)));
            operation.tags = Some(vec![tag.to_owned()]);
            complete(operation);
        }
        document.paths.paths.insert(path, item);
    }
    let components = document.components.get_or_insert_default();
    components.responses = responses().map(|(name, response)| (name.to_owned(), response.into())).into();
    let project = ParameterBuilder::new()
        .name("project")
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some("The project: `default` is the only one, and any other is not found."))
        .schema(Some(Object::with_type(Type::String)));
    components.parameters.insert("project".to_owned(), RefOr::T(project.build()));
    document
}

/// Adds what follows from the parameters and the body, and what holds for every request.
fn complete(operation: &mut Described) {
    let parameters = operation.parameters.get_or_insert_default();
    let matched = parameters.iter().any(|p| matches!(p, RefOr::T(p) if p.name == "If-Match"));
    let json = match &operation.request_body {
        Some(RefOr::T(body)) => body.content.contains_key("application/json"),
        _ => false,
    };
    let input = !parameters.is_empty() || operation.request_body.is_some();
    for (applies, kind, name) in [
        (true, Kind::NotFound, "NotFound"),
        (true, Kind::Internal, "InternalServerError"),
        (input, Kind::Invalid, "BadRequest"),
        (matched, Kind::Changed, "PreconditionFailed"),
        (json, Kind::TooLarge, "ContentTooLarge"),
    ] {
        if applies {
            let status = status_of(kind).as_str().to_owned();
            operation.responses.responses.insert(status, RefOr::Ref(Ref::from_response_name(name)));
        }
    }
    parameters.push(RefOr::Ref(Ref::new("#/components/parameters/project")));
}

/// The answers that have a name.
fn responses() -> [(&'static str, ResponseBuilder); 14] {
    let json = |description: &str, content| {
        ResponseBuilder::new().description(description).content("application/json", content)
    };
    let failure = |description: &str| json(description, Content::new(Some(Ref::from_schema_name(Response::name()))));
    let created = json("Made.", envelope(Object::with_type(Type::Null).into()));
    let accepted = "Begun in the background: wait for the operation to learn how it ends.";
    let accepted = json(accepted, envelope(Operation::metadata()));
    let octets = ResponseBuilder::new().description("The bytes, as they are.");
    let websocket = "The connection is a websocket from here on (RFC 6455).";
    [
        ("EmptySyncResponse", json("Done; there is nothing to say.", envelope(Object::with_type(Type::Object).into()))),
        ("Bytes", octets.content("application/octet-stream", bytes())),
        ("Created", header(created, "Location", "Where it is now.")),
        ("Operation", header(accepted, "Location", "The operation.")),
        ("Websocket", ResponseBuilder::new().description(websocket)),
        ("BadRequest", failure("The request is wrong, or makes no sense as things are; `error` says why.")),
        ("Forbidden", failure("This is not allowed.")),
        ("NotFound", failure("What the path, the body or `project` names is not there.")),
        ("RequestTimeout", failure("The time was over.")),
        ("Conflict", failure("The name is taken, or something else stands in the way.")),
        ("PreconditionFailed", failure("If-Match names another state than the present one.")),
        ("ContentTooLarge", failure("The body is larger than what is read.")),
        ("InternalServerError", failure("The host failed.")),
        ("NotImplemented", failure("This works with Incus and is not served here.")),
    ]
}

/// The operations of a path, by method.
fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Described)> {
    [
        ("get", &mut item.get),
        ("put", &mut item.put),
        ("post", &mut item.post),
        ("delete", &mut item.delete),
        ("options", &mut item.options),
        ("head", &mut item.head),
        ("patch", &mut item.patch),
        ("trace", &mut item.trace),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// A path in one word, as Incus names its operations: `/1.0/instances/{name}/state` is `instance_state`.
fn name(path: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for segment in path.trim_start_matches("/1.0").split('/').filter(|segment| !segment.is_empty()) {
        // A parameter is one of what the word before names.
        match (segment.strip_prefix('{'), words.last_mut()) {
            (None, _) => words.push(segment.replace(['-', '.'], "_")),
            (Some(_), Some(word)) if word.ends_with("ses") => word.truncate(word.len() - 2),
            (Some(_), Some(word)) if word.ends_with('s') => word.truncate(word.len() - 1),
            (Some(parameter), _) => words.push(parameter.trim_end_matches('}').to_owned()),
        }
    }
    match (path, words.is_empty()) {
        ("/", _) => "api".to_owned(),
        (_, true) => "server".to_owned(),
        _ => words.join("_"),
    }
}
