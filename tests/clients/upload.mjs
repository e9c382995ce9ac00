// One upload by tus-js-client. Arguments: the service's address for uploads, a file, and options as JSON.
// What it did is printed as JSON; an upload that fails ends the process with 1.
import fs from 'node:fs'
import * as tus from 'tus-js-client'

const [endpoint, path, given] = process.argv.slice(2)
const { storage, terminateAfter, ...options } = JSON.parse(given)
const seen = { requests: [], resumed: false }

function end(code, more) {
  console.log(JSON.stringify({ ...seen, ...more }))
  process.exit(code)
}

const upload = new tus.Upload(fs.createReadStream(path), {
  endpoint,
  ...options,
  ...(storage ? { urlStorage: new tus.FileUrlStorage(storage) } : {}),
  onAfterResponse: (request, response) => {
    seen.requests.push([request.getMethod(), response.getStatus()])
    seen.digest = response.getHeader('Repr-Digest') ?? seen.digest
  },
  onChunkComplete: async (size, accepted) => {
    if (terminateAfter && accepted >= terminateAfter) {
      await upload.abort(true)
      end(0, { url: upload.url })
    }
  },
  onError: (error) => end(1, { error: error.message, url: upload.url }),
  onSuccess: () => end(0, { url: upload.url }),
})
const previous = storage ? await upload.findPreviousUploads() : []
if (previous.length) {
  seen.resumed = true
  upload.resumeFromPreviousUpload(previous[0])
}
upload.start()
