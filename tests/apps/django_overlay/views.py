"""Views that a fresh Django project gets at test time."""

import asyncio
import hashlib

from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt


@csrf_exempt
def upload(request):
    file = request.FILES["file"]
    digest = hashlib.sha256()
    for chunk in file.chunks():
        digest.update(chunk)
    return JsonResponse({"name": file.name, "size": file.size, "sha256": digest.hexdigest(), "note": request.POST["note"]})


def download(request):
    return StreamingHttpResponse((b"%07d\n" % number for number in range(20000)), content_type="text/plain")


def file(request):
    return FileResponse(open(__file__, "rb"), as_attachment=True, filename="views.py")


@csrf_exempt
async def async_body(request):
    await asyncio.sleep(0.01)
    return JsonResponse({"size": len(request.body), "first": request.body[:10].decode()})


async def async_stream(request):
    async def blocks():
        for number in range(5):
            await asyncio.sleep(0.01)
            yield b"%d " % number

    return StreamingHttpResponse(blocks(), content_type="text/plain")


def broken(request):
    raise RuntimeError("broken view")


def echo_path(request, rest):
    return HttpResponse(rest)


urlpatterns = [
    path("upload", upload),
    path("download", download),
    path("file", file),
    path("async-body", async_body),
    path("async-stream", async_stream),
    path("broken", broken),
    path("echo/<path:rest>", echo_path),
]
